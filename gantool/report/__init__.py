"""Pictures and pages made from run directories: curves.png of a run, and report.html of one or many.

Only this package knows matplotlib and jinja2. No torch.
"""
