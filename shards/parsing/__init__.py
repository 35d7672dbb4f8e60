"""File formats of other programs, read safely: pickles, torch.save, safetensors, LMDB, text encodings."""
