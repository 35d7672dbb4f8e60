"""Models from run directories, ready for use or for other heads."""

from pathlib import Path

from pretrain.checkpoint import MODEL, best_checkpoint, read_tensors
from pretrain.config import model_config_from
from pretrain.heads import PretrainingModel
from pretrain.model import TwoStream
from shards.errors import UserError
from shards.files import read_json


def load(run) -> TwoStream:
    """The two-stream model of a run directory, from its best checkpoint, in evaluation mode on the CPU."""
    return load_pretraining(run).encoder


def load_pretraining(run) -> PretrainingModel:
    """The same with its pretraining heads."""
    path = best_checkpoint(run)
    if path is None:
        raise UserError(f"{run}: holds no whole checkpoint; give the directory of a run (python -m pretrain.run)")
    config = model_config_from(read_json(Path(run) / "config.json").get("model"), f"{run}/config.json")
    weights = read_tensors(path, MODEL)
    model = PretrainingModel(config, len(weights["regions.decoder.bias"]))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit {run}/config.json ({str(error).splitlines()[-1].strip()})"
        ) from None
    return model.eval()
