"""Reads run directories for reports: configuration, metrics and results."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import MtConfig, StConfig
from finetune.decontamination.manifest import is_cleaned
from finetune.evaluation.scores import COLUMNS, FOUR_WAY
from finetune.run_dirs.result_files import EvaluationScores, MultiResult, SingleResult
from finetune.run_dirs.run_data_folder import evaluations_folder
from finetune.tasks import add_task_files_of
from pretrain.config import PretrainConfig
from pretrain.engine.metrics_logger import METRICS, read_metrics
from pretrain.engine.result_file import Result as PretrainingResult
from pretrain.engine.run_dir import CONFIG, RESULT, existing_runs, read_config
from shards.common.cli import current_flags
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.common.files import files_below, read_json
from shards.common.untrusted_input import is_number, shown

PRETRAINING, SINGLE, MULTI = "pretraining", "one task", "many tasks"  # kinds of runs
TYPES = {  # of their flags and of result.json
    PRETRAINING: (PretrainConfig, PretrainingResult),
    SINGLE: (StConfig, SingleResult),
    MULTI: (MtConfig, MultiResult),
}

TABLED = tuple(column for column in COLUMNS.values() if isinstance(column, tuple))  # (task, metric) in tables
DRAWN = re.compile(rf"(.+/)?(score|going|{FOUR_WAY})|loss_.+|.+_accuracy")  # values in metrics.jsonl that are plotted


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
    def initial_weights(self) -> str:
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
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if wrong := _invalid(run):
            raise UserError(f"{run.path}: {wrong}; the file is damaged, or of another version")
    return runs


def _configs(path: Path) -> list[str]:
    return files_below(path, CONFIG.__eq__) if path.is_dir() else []


def read_run(folder: Path) -> Run:
    add_task_files_of(folder)
    config, result = read_config(folder), folder / RESULT
    lines, bad = read_metrics(folder / METRICS) if (folder / METRICS).exists() else ([], 0)
    whole = [line for line in lines if _plotted(line)]
    bad += len(lines) - len(whole)
    if bad:
        print(f"{folder / METRICS}: skipped {counted(bad, 'unreadable line')}")
    kept = [read_json(path, EvaluationScores) for path in sorted(evaluations_folder(folder).glob("*.json"))]
    run = Run(
        path=folder,
        config=config,
        result=None,
        training=[line for line in whole if line["kind"] == "train"],
        validation=[line for line in whole if line["kind"] == "validation"],
        evaluations={(scores["task"], scores["split"]): scores for scores in kept},
    )
    config_type, result_type = TYPES[run.kind]
    run = replace(run, config=config | {"flags": current_flags(config_type, run.flags)})
    return replace(run, result=read_json(result, result_type)) if result.exists() else run


def _invalid(run: Run) -> str:
    """What a report needs of a run and its files lack, although each of them has its own fields; else ""."""
    if run.kind == PRETRAINING:
        return f"{CONFIG} has no data" if not run.result and not run.config.get("data") else ""
    for name in ("start", "tasks"):
        if not run.config.get(name):
            return f"{CONFIG} has no {name}"
    if run.kind == MULTI:
        if not isinstance(run.flags.get("data"), str):
            return f"{CONFIG} has no --data"
        if not is_number(run.flags.get("gap", MtConfig.gap)):
            return f"{CONFIG} has --gap {shown(run.flags['gap'])}"
    if run.result and (lost := [task for task in run.config["tasks"] if task not in run.validated]):
        return f"{RESULT} has no scores of {lost[0]}"
    evaluated = [(f"the scores of {' '.join(key)}", key[0], scores) for key, scores in run.evaluations.items()]
    for where, task, scores in [*((RESULT, *of) for of in run.validated.items()), *evaluated]:
        for metric in (metric for name, metric in TABLED if name == task):
            if not is_number(scores.get(metric)):
                return f"{where}: {task} has no {metric}"
    return ""


def _plotted(line: dict) -> bool:
    """Whether all values of a line of metrics.jsonl that reports draw are numbers or absent."""
    return all(
        value is None or is_number(value) or isinstance(value, bool) or value != value
        for name, value in line.items()
        if DRAWN.fullmatch(name)
    )
