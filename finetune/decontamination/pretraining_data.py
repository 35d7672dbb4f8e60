"""Whether the data that a model was pretrained on was searched for test images."""

import os
from pathlib import Path

from finetune.decontamination.corpus_files import MANIFEST
from pretrain.engine.run_dir import CONFIG, read_config
from shards.common.files import is_remote, read_json


def unchecked_pretraining(run) -> str | None:
    """A warning about the data of a pretraining run; None if it was searched, or the run does not exist.

    A list of excluded images that finetune.clean has not written counts, because its origin is unknown.
    """
    if not (Path(run) / CONFIG).exists():
        return None
    config = read_config(run)
    data, excluded = config["flags"].get("data"), config["flags"].get("exclude")
    if "tasks" in config or not data:  # not a pretraining run
        return None
    if not excluded:
        return (
            f"{run}: its pretraining data was not checked for test images; python -m finetune.clean --corpus {data}, "
            "then pretrain.run --exclude"
        )
    manifest = (Path(excluded) if Path(excluded).is_dir() else Path(excluded).parent) / MANIFEST
    if not manifest.exists() or is_remote(data):
        return None
    searched = read_json(manifest).get("corpus")
    if searched and os.path.realpath(searched) != os.path.realpath(data):
        return f"{run}: was trained on {data}, but --exclude {excluded} is the list of {searched}"
    return None
