"""The two-stream model, its pretraining objectives, and the engine that trains it."""

from pretrain.load import load

__all__ = ["load"]
