"""Losses of the tasks, and a model's pass over a batch."""
