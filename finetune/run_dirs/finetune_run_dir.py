"""The directory of a fine-tuning run: its configuration, its tasks, and fingerprints of their data."""

import dataclasses
from pathlib import Path

import torch

from finetune.config import TrainingConfig
from finetune.data.regions import Regions
from finetune.run_dirs.answer_vocabularies import Vocabularies, vocabulary_path
from finetune.run_dirs.model_source import ModelSource
from finetune.run_dirs.run_data_folder import check_exists
from finetune.task_types.base import Task
from finetune.tasks import add_task_files_of, find_task, keep_task_files
from pretrain.engine.run_dir import CONFIG, DETECTOR, absolute, clear_run, read_config, stored_form
from pretrain.engine.run_metadata import run_metadata
from pretrain.models.model_config import ModelConfig
from shards.common.errors import UserError
from shards.common.files import write_json
from shards.detectors import keep_detector


def begin_run(
    run: Path,
    config: TrainingConfig,
    source: ModelSource,
    sizes: ModelConfig,
    tasks: list[Task],
    tokens: dict,
    vocabularies: Vocabularies,
    device: torch.device,
    regions: Regions,
    content: dict[str, list[str]],
) -> None:
    """Creates a run directory: configuration, tokenizer, answers, and the detector's description.

    choose_source reads it when the run is resumed or used as initial weights; finetune.predict needs the detector.

    Args:
        run: run directory; files of an earlier run without a checkpoint are deleted.
        config: flags.
        source: initial weights.
        sizes: model configuration.
        tasks: tasks of the run.
        tokens: task -> task token.
        vocabularies: answer head -> answers.
        device: device of the run.
        regions: regions of the images of one of the tasks.
        content: task -> fingerprints of its data (task_data.content_of), see check_content.
    """
    clear_run(run)
    source.tokenizer.save(run)
    keep_detector(regions.dataset.folder, run / DETECTOR)
    keep_task_files(tasks, run)
    for head, vocabulary in vocabularies.items():
        vocabulary.save(vocabulary_path(run, head))
    write_json(
        run / CONFIG,
        {
            "flags": stored_form(dataclasses.asdict(config)),
            "model": sizes.to_dict(),
            "tasks": [task.name for task in tasks],
            "tokens": tokens,
            "start": {"kind": source.kind, "run": absolute(source.path, "init"), "sha256": source.digest},
            "content": content,
            "made": run_metadata(device),
        },
    )


def check_content(run: Path, content: dict[str, list[str]]) -> None:
    """Raises UserError if the data of a task have changed since a run that is resumed began.

    The order of the examples, and so the numbers of the run, would then not be those of a run without interruption.
    """
    stored = read_config(run).get("content", {})  # empty in runs of earlier versions
    changed = [name for name, found in content.items() if stored.get(name, found) != found]
    if changed:
        raise UserError(
            f"{run}: the data of {', '.join(changed)} have changed since the run began; resume with the same data, or "
            "start a new run with another --out"
        )


def read_tasks(run) -> list[Task]:
    """The tasks that a run was trained on."""
    check_exists(run)
    add_task_files_of(run)
    names = read_config(run).get("tasks", []) if (Path(run) / CONFIG).exists() else []
    if not names:
        raise UserError(f"--run {run}: does not list its tasks; name them by --task")
    return [find_task(name) for name in names]
