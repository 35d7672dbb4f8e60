"""The two-stream model, its pretraining objectives, and the engine that trains it."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "ops" / "own_packages.py"))["check_packages"]()

from pretrain.models.model_config import ModelConfig
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.models.vilbert import AttentionMaps, Encoded, TwoStream
from pretrain.pretrained.load_model import load, load_pretraining

__all__ = ["AttentionMaps", "Encoded", "ModelConfig", "PretrainingModel", "TwoStream", "load", "load_pretraining"]
