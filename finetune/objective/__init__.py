"""A model's pass over a batch of a task, and its loss."""
