"""Masking, pretraining losses, validation."""
