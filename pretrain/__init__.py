"""The two-stream model, its pretraining objectives, and the engine that trains it."""

from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import AttentionMaps, Encoded, TwoStream
from pretrain.pretrained.load_model import load

__all__ = ["AttentionMaps", "Encoded", "ModelConfig", "TwoStream", "load"]
