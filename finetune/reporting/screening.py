"""The screening of --suite interference: short runs of every method at several learning rates, to choose the best.

Screening runs have a seed that no table uses, so that the choice of methods and learning rates does not favour them in
the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.config import AblateConfig
from finetune.reporting.ablation_runs import AblationRun, has_both
from finetune.reporting.ablation_suites import Row
from finetune.run_dirs.result_files import MultiResult
from pretrain.engine.run_dir import RESULT
from shards.common.errors import UserError
from shards.common.files import read_json

SCREENED = "interference"  # the suite
SEED = 1000
ITERATIONS = 150
KEPT = 4  # methods in the table in addition to the paper's


def screening_runs(config: AblateConfig, rows: Mapping[str, Row]) -> list[AblationRun]:
    """One run per row and learning rate. Raises UserError for --lr_scales that are not numbers above 0."""
    try:
        scales = [float(scale) for scale in config.lr_scales.split(",")]
    except ValueError:
        scales = [0.0]
    if min(scales) <= 0:
        raise UserError(f"--lr_scales {config.lr_scales}: should be comma-separated numbers above 0, such as 4,8,16")
    folder = Path(config.out) / config.suite / "screening"
    return [
        AblationRun(
            f"{name}, learning rate x {scale:g}",
            replace(row, flags=row.flags | {"lr_scale": scale}),
            SEED,
            folder / f"{name.replace(' ', '_')}-{scale:g}",
        )
        for name, row in rows.items()
        for scale in scales
    ]


def screening_config(config: AblateConfig) -> AblateConfig:
    """The flags of screening runs."""
    return replace(config, iterations=min(ITERATIONS, config.iterations or ITERATIONS))


def without_g4(name: str) -> str:
    """The name of a method's row without G4, which harms the other groups in the paper."""
    return f"{name}, without G4"


def chosen_rows(
    config: AblateConfig, rows: Mapping[str, Row], runs: Sequence[AblationRun]
) -> tuple[dict[str, Row], str]:
    """(rows of the table, the scores of the screening as text).

    The rows are the first one and the KEPT best others, each at its best learning rate, with all tasks and, if some of
    the tasks are of G4 and others are not, without G4.

    Args:
        config: flags.
        rows: the rows that were screened; the first one is the paper's way.
        runs: the finished runs of `screening_runs`, in their order.
    """
    scores = [read_json(one.out / RESULT, MultiResult)["mt_score"] for one in runs]
    each = len(runs) // len(rows)
    best: dict[str, tuple[float, Row]] = {}
    for number, name in enumerate(rows):
        of_row = range(number * each, (number + 1) * each)
        winner = max(of_row, key=lambda run: scores[run])
        best[name] = scores[winner], runs[winner].row
    first, *others = best
    kept = [first, *sorted(others, key=lambda name: -best[name][0])[:KEPT]]
    table = {name: best[name][1] for name in kept}
    if has_both(config):
        table |= {without_g4(name): replace(row, without_g4=True) for name, row in table.items()}
    lines = [f"screening, seed {SEED}: MT scores"]
    lines += [f"  {one.name:<40} {score:7.2%}" for one, score in zip(runs, scores, strict=True)]
    return table, "\n".join([*lines, f"in the table: {', '.join(kept)}"])
