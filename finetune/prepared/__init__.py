"""Prepared examples: the official files of a task, read once and kept in files that all processes map."""
