"""A run as one folder to publish: weights, tokenizer, answers and detector, with a model card.

    model.safetensors   the weights of the best checkpoint, as they are in the run
    checkpoint.json     their step, score and SHA-256
    config.json         the run's configuration without local paths
    tokenizer.json      answers-*.json      detector/
    README.md           the model card

Wherever a command takes a run, it takes such a folder too. The folder contains no optimizer state and no pickle.
"""

import shutil
from pathlib import Path

from finetune.run_dirs.model_card import model_card
from finetune.tasks import TASK_FILES, add_task_files_of
from pretrain.engine.checkpoint import METADATA, MODEL, best_checkpoint, copy_tensors, read_metadata, selection_score
from pretrain.engine.run_dir import CONFIG, DETECTOR, PATHS, existing_runs, read_config
from pretrain.tokenizer.tokenizer import FILE as TOKENIZER
from shards.common.cli import current_flags
from shards.common.errors import UserError
from shards.common.files import read_json, split_paths, whole_file, write_json
from shards.common.folder_lock import FolderLock
from shards.config import ExtractConfig
from shards.detectors import DESCRIBED

CARD = "README.md"
MODEL_TYPE = "twelve-in-one"


def write_model_folder(run, out, license: str | None = None) -> Path:
    """Writes the folder of a run.

    Args:
        run: run directory, or such a folder.
        out: new or empty folder, or one that this function wrote earlier.
        license: licence identifier for the model card, as the Hugging Face hub has them (mit, cc-by-4.0, other, ...).

    Raises:
        UserError: `run` has no checkpoint or a damaged one, or `out` contains something else.
    """
    run, out = Path(run), Path(out)
    checkpoint = best_checkpoint(run) if (run / CONFIG).exists() else None
    if checkpoint is None:
        raise UserError(
            f"{run}: contains no run with a complete checkpoint; pretrain.convert makes a run of published weights"
            f"{existing_runs(run)}"
        )
    if out.resolve() == run.resolve() or not _may_be_written(out):
        raise UserError(f"{out}: contains other files; use a new folder")
    config = read_config(run)
    lock = FolderLock(out, "finetune.share")
    lock.acquire()
    try:
        with whole_file(out / MODEL) as file:
            copy_tensors(checkpoint, MODEL, file)
            (out / METADATA).unlink(missing_ok=True)  # until the folder is complete it is not a model
        for source in (run / TOKENIZER, *run.glob("answers-*.json")):
            if source.exists():
                with whole_file(out / source.name) as file:
                    shutil.copyfile(source, file.name)
        add_task_files_of(run)
        for folder in (DETECTOR, TASK_FILES):
            shutil.rmtree(out / folder, ignore_errors=True)
        if (run / TASK_FILES).is_dir():
            shutil.copytree(run / TASK_FILES, out / TASK_FILES)
        if (run / DETECTOR).is_dir():
            shutil.copytree(run / DETECTOR, out / DETECTOR)
            _remove_paths(out / DETECTOR / "dataset.json")
        write_json(out / CONFIG, without_paths(config) | {"model_type": MODEL_TYPE})
        with whole_file(out / CARD, "w", encoding="utf-8") as file:
            file.write(model_card(run, config, license))
        metadata = read_metadata(checkpoint)
        kept = {
            "step": metadata["step"],
            "selection_score": selection_score(metadata),
            "sha256": {MODEL: metadata["sha256"][MODEL]},
        }
        write_json(out / METADATA, kept)
    finally:
        lock.release()
    return out


def _may_be_written(out: Path) -> bool:
    """Whether a folder is new, empty, or a model folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    config = out / CONFIG
    return config.exists() and isinstance(read := read_json(config), dict) and read.get("model_type") == MODEL_TYPE


def _remove_paths(described: Path) -> None:
    """Reduces the paths in a detector's description to file names; earlier versions also stored those of images."""
    value = read_json(described)
    plan = current_flags(ExtractConfig, value["extra"]["plan"])
    names = {}
    if plan.get("weights"):
        names["weights"] = ",".join(Path(part).name for part in split_paths(plan["weights"]))
    if plan.get("detector_config"):
        names["detector_config"] = Path(plan["detector_config"]).name
    value["extra"]["plan"] = {name: plan[name] for name in DESCRIBED if name in plan} | names
    write_json(described, value)


def without_paths(config: dict) -> dict:
    """A run's configuration without the paths of the machine on which it was trained."""
    flags = {
        name: None if name in PATHS and value not in PATHS[name] else value for name, value in config["flags"].items()
    }
    changed = {"flags": flags}
    if config.get("start"):
        changed["start"] = config["start"] | {"run": None}
    return config | changed
