"""Evaluation: features of examples, scores from features, baselines, and their report."""

EXTRACTORS = ('inception', 'classifier', 'pixels')
# Ten parts of at least two examples each, as the scores need.
MIN_SAMPLES = 20
