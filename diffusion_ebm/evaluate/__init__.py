"""Evaluation: features of images, scores from features, baselines, and their report."""
