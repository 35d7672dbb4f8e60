"""What importers share: a source of features, the features of one image."""
