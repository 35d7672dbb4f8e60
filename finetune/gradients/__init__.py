"""Gradients of several tasks on shared parameters: kept, compared, and the interference that they show."""
