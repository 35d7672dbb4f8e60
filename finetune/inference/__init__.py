"""Loading of models, predictions, evaluation, attention maps, requests with images and texts."""
