"""Decontamination (Clean V&L): finds test images in training data by image ids and near-duplicate search."""
