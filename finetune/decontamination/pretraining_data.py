"""Whether the data that a model was pretrained on was searched for test images."""

import os
from pathlib import Path

from finetune.decontamination.corpus_files import MANIFEST
from pretrain.engine.run_dir import CONFIG, read_config
from shards.common.errors import UserError
from shards.common.files import expand, is_remote, printable, read_json
from shards.storage.dataset import plan_of


def unchecked_pretraining(run) -> str | None:
    """A warning about the data of a pretraining run; None if it was searched, or the run does not exist.

    The images of region shards may have been searched instead of the shards. A list of excluded images that
    finetune.clean has not written counts, because its origin is unknown.
    """
    if not (Path(run) / CONFIG).exists():
        return None
    config = read_config(run)
    data, excluded = config["flags"].get("data"), config["flags"].get("exclude")
    if "tasks" in config or not data:  # not a pretraining run
        return None
    extraction = _extraction(data)
    if not excluded:
        if "exclude" in extraction:
            return None
        return (
            f"{run}: its pretraining data was not checked for test images; python -m finetune.clean --corpus {data}, "
            "then pretrain.run --exclude"
        )
    manifest = (Path(excluded) if Path(excluded).is_dir() else Path(excluded).parent) / MANIFEST
    if not manifest.exists() or is_remote(data):
        return None
    searched = read_json(manifest).get("corpus")
    images = [name for first, last, _ in extraction.get("images", ()) for name in (first, last)]
    if searched and os.path.realpath(searched) != os.path.realpath(data) and not _contains(searched, images):
        return f"{run}: was trained on {data}, but --exclude {excluded} is the list of {searched}"
    return None


def _extraction(data: str) -> dict:
    """The settings with which shards.extract made region shards; empty for other data."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    plan = plan_of(folder) if (folder / "dataset.json").exists() else {}
    return plan if plan.get("command") == "shards.extract" else {}


def _contains(corpus: str, files: list[str]) -> bool:
    """Whether some files, at least one, are those of a corpus: a folder, or a pattern of tars."""
    if os.path.isdir(corpus):
        return bool(files) and all(Path(name).is_relative_to(corpus) for name in files)
    try:
        return bool(files) and {*files} <= {printable(name) for name in expand(corpus)}
    except UserError:  # it no longer exists
        return False
