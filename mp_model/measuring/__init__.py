"""Measuring a classifier: the answers of all exits, choosing thresholds, accuracy and work, time."""
