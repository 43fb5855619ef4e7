"""Scores of generated images. `moments` and `scores` are numbers only and never load torch; the rest does.

features     a block of images to features, a stream of images to statistics
extractors   the table of feature extractors: inception, classifier
reference    statistics of the real images, kept beside the data by `cache`
moments      statistics, the Frechet distance, the inception score
scores       what is computed from statistics, and the record of it
"""
