"""Predictions, attention maps, requests with images and texts."""
