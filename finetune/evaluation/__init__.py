"""Scores, bootstrap intervals, the paper's results, grounding consistency."""
