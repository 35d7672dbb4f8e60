"""Heads, one kind of answer each: layer, targets, loss, training score, and the form of predictions."""
