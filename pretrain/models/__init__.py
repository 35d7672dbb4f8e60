"""The two-stream model: layers, attention, packed sequences, dropout, pretraining heads."""
