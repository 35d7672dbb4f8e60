"""Reads run directories for reports: configuration, metrics and results."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import MtConfig, StConfig
from finetune.decontamination.manifest import is_cleaned
from finetune.run_dirs.result_files import EvaluationScores, MultiResult, SingleResult
from finetune.run_dirs.run_data_folder import evaluations_folder
from finetune.tasks import add_task_files_of
from pretrain.config import PretrainConfig
from pretrain.engine.metrics_logger import METRICS, read_metrics
from pretrain.engine.result_file import Result as PretrainingResult
from pretrain.engine.run_dir import CONFIG, RESULT, existing_runs, read_config
from shards.common.cli import current_flags
from shards.common.errors import UserError
from shards.common.files import files_below, read_json

PRETRAINING, SINGLE, MULTI = "pretraining", "one task", "many tasks"  # kinds of runs
TYPES = {  # of their flags and of result.json
    PRETRAINING: (PretrainConfig, PretrainingResult),
    SINGLE: (StConfig, SingleResult),
    MULTI: (MtConfig, MultiResult),
}


@dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    config: config.json; result: result.json, None for an unfinished run; training, validation: lines of metrics.jsonl;
    evaluations: (task, split) -> scores that finetune.evaluate has written.
    """

    path: Path
    config: dict
    result: dict | None
    training: list[dict]
    validation: list[dict]
    evaluations: dict[tuple[str, str], dict]

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def flags(self) -> dict:
        return self.config["flags"]

    @property
    def cleaned(self) -> bool:
        """Whether it was trained on decontaminated data, like the paper's models of tables 10 to 12."""
        return is_cleaned(self.config)

    @property
    def kind(self) -> str:
        return PRETRAINING if "tasks" not in self.config else MULTI if "regime" in self.flags else SINGLE

    @property
    def start(self) -> str:
        """Kind of the initial weights: AT->ST, ST, BERT or scratch."""
        return self.config["start"]["kind"]

    @property
    def validated(self) -> dict[str, dict]:
        """Task -> validation metrics of a finished run; empty for other runs."""
        if self.result is None or self.kind == PRETRAINING:
            return {}
        return self.result["tasks"] if self.kind == MULTI else {self.result["task"]: self.result["validation"]}


def find_runs(paths: Iterable[str]) -> list[Run]:
    """The runs in these directories and below them, each once."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        below = [path] if (path / METRICS).exists() else sorted(Path(file).parent for file in _configs(path))
        below = [folder for folder in below if (folder / CONFIG).exists() and (folder / METRICS).exists()]
        if not below:
            hint = f"give run directories of pretrain.run, finetune.mt, st or ablate{existing_runs(path)}"
            raise UserError(f"{path}: contains no run; {hint}")
        folders |= dict.fromkeys(below)
    return [read_run(folder) for folder in folders]


def _configs(path: Path) -> list[str]:
    return files_below(path, CONFIG.__eq__) if path.is_dir() else []


def read_run(folder: Path) -> Run:
    add_task_files_of(folder)
    config, result = read_config(folder), folder / RESULT
    lines, bad = read_metrics(folder / METRICS) if (folder / METRICS).exists() else ([], 0)
    if bad:
        print(f"{folder / METRICS}: skipped {bad} unreadable lines")
    kept = [read_json(path, EvaluationScores) for path in sorted(evaluations_folder(folder).glob("*.json"))]
    run = Run(
        path=folder,
        config=config,
        result=None,
        training=[line for line in lines if line["kind"] == "train"],
        validation=[line for line in lines if line["kind"] == "validation"],
        evaluations={(scores["task"], scores["split"]): scores for scores in kept},
    )
    config_type, result_type = TYPES[run.kind]
    run = replace(run, config=config | {"flags": current_flags(config_type, run.flags)})
    return replace(run, result=read_json(result, result_type)) if result.exists() else run
