"""Scores of generated images. Numbers only (no torch): `moments`, `scores`. With torch: everything else.

    features     images -> features, in fixed blocks; many images -> statistics
    extractors   the table of feature extractors: inception, classifier
    reference    statistics of the real images, cached
"""
