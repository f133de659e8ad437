"""Scores with intervals: what a prediction is worth, for whom, and against what."""
