"""The numbers of grounding consistency: tables of both forms, and what is stored."""

import dataclasses
import os
from pathlib import Path

from finetune.config import ConsistencyConfig
from finetune.decontamination.manifest import is_cleaned
from finetune.evaluation.grounding_consistency import Consistency
from pretrain.engine.distributed import choose_device
from pretrain.engine.run_dir import CONFIG, read_config
from pretrain.engine.run_metadata import run_metadata
from shards.common.counted import counted
from shards.common.dist_info import ALONE
from shards.common.files import split_paths


def forms_of(config: ConsistencyConfig) -> tuple[str, str]:
    """Both forms of y(q), the main one first."""
    return ("fractional", "threshold") if config.fractional else ("threshold", "fractional")


def titles(config: ConsistencyConfig) -> dict[str, str]:
    return {
        "threshold": f"y(q) = 1 where VQA accuracy is at least {config.threshold:g}, else 0",
        "fractional": "y(q) = VQA accuracy (fractional)",
    }


def stored_row(forms: dict[str, Consistency], config: ConsistencyConfig) -> dict:
    """A row of consistency.json: numbers and name of the main form, and both forms by name."""
    main = forms_of(config)[0]
    both = {form: dataclasses.asdict(forms[form]) for form in forms}
    return both[main] | {"form": main, "threshold_accuracy": config.threshold} | both | _metadata(config)


def _metadata(config: ConsistencyConfig) -> dict:
    """Metadata of the numbers: data folder, splits, and software versions."""
    of = {"data": os.path.abspath(config.data), "questions": config.questions, "expressions": config.expressions}
    return of | {"made": run_metadata(choose_device(config.device, ALONE))}


def render(rows: dict[str, Consistency]) -> str:
    """The scores of one form as a table; the column y(q) is its mean over all questions."""
    lines = [f"{'':<10} {'MT-VGC':>7} {'95% interval':>18} {'independent':>12} {'y(q)':>7} {'found':>7} {'images':>7}"]
    for name, row in rows.items():
        interval = f"{row.interval[0]:.1%} to {row.interval[1]:.1%}"
        lines.append(
            f"{name:<10} {row.score:>7.1%} {interval:>18} {row.independent:>12.1%} {row.answered:>7.1%} "
            f"{row.found:>7.1%} {row.images:>7}   {counted(row.pairs, 'pair shares a word', 'pairs share a word')}"
        )
    return "\n".join(lines)


def warn_if_not_cleaned(config: ConsistencyConfig) -> None:
    """Prints a warning for runs that may have been trained on the evaluated questions or expressions."""
    for path in dict.fromkeys([config.run, *split_paths(config.grounding or "")]):
        file = Path(path) / CONFIG
        if path and file.exists() and not is_cleaned(read_config(path)):
            print(f"warning: {path}: trained without --clean, possibly on these questions or expressions")
