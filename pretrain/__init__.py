"""The two-stream model, its pretraining objectives, and the engine that trains it."""

from pretrain.pretrained.load_model import load

__all__ = ["load"]
