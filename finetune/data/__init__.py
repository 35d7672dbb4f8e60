"""Annotations and regions to batches of a task, hard negatives."""
