"""The two-stream model with the heads of the tasks."""
