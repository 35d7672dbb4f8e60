"""The table of an ablation: means over seeds, and differences from the full method."""

from pathlib import Path

import numpy as np

from finetune.balancing import STEPS
from finetune.config import AblateConfig, MtConfig
from finetune.decontamination.manifest import NOT_CLEANED, is_cleaned
from finetune.evaluation.paired_test import MeanDifference, mean_difference
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import load_values, mean_row, ranking_note, render_rows
from finetune.reporting.ablation_runs import AblationRun
from finetune.reporting.ablation_suites import PAPER_TABLES
from finetune.reporting.screening import without_g4
from finetune.run_dirs.result_files import VALUES, MultiResult
from pretrain.engine.run_dir import RESULT, read_config, read_flags
from shards.common.files import read_json, whole_file


def write_table(config: AblateConfig, runs: list[AblationRun], screening: str = "") -> str:
    """Writes table.txt and returns its text. screening: the scores by which rows were chosen, for its end."""
    text = table(config.suite, runs) + (f"\n\n{screening}" if screening else "")
    path = Path(config.out) / config.suite / "table.txt"
    with whole_file(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    return f"{text}\ntable: {path}"


def table(suite: str, runs: list[AblationRun]) -> str:
    """Means over seeds in the paper's layout, and the difference of each row's MT score from the full method's."""
    by_row: dict[str, list[AblationRun]] = {}
    for one in runs:
        by_row.setdefault(one.name, []).append(one)
    results = {name: [read_json(one.out / RESULT, MultiResult) for one in of_row] for name, of_row in by_row.items()}
    rows = {name: mean_row([result["tasks"] for result in of_row]) for name, of_row in results.items()}
    mark = ""
    if suite in PAPER_TABLES:
        if not all(is_cleaned(read_config(one.out)) for one in runs):
            mark = f", {NOT_CLEANED} (the paper's models are trained on cleaned data)"
        rows |= {f"the paper: {name}": paper_row(PAPER_TABLES[suite], name) for name in results}
    full = next(iter(by_row))
    seeds = len(by_row[full])
    lines = [f"{suite}: means of {seeds} {'seeds' if seeds > 1 else 'seed'}, validation{mark}", render_rows(rows), ""]
    lines.append(f"difference of the MT score from {full!r}, over the tasks of both")
    for name in list(by_row)[1:]:
        lines.append(compare_rows(by_row[name], by_row[full]).line(name))
    pairs = [(name, without_g4(name)) for name in by_row if without_g4(name) in by_row]
    if pairs:
        lines.append("difference of the MT score by training with G4, over the other tasks")
    for name, without in pairs:
        lines.append(compare_rows(by_row[name], by_row[without]).line(name))
    lines.append("interval: 95%, paired bootstrap over images; p: paired t-test over tasks and seeds")
    lines += ["", "cost of a run: means over seeds", *(_cost(name, by_row[name], results[name]) for name in results)]
    if note := ranking_note(*(result["tasks"] for of_row in results.values() for result in of_row)):
        lines.append(note)
    return "\n".join(lines)


def _cost(name: str, runs: list[AblationRun], results: list[dict]) -> str:
    """Optimizer steps, task steps (batches of one task), and time of a row's runs."""
    balance = read_flags(runs[0].out, MtConfig).get("balance", STEPS)
    batches = np.mean([sum(of["steps"] for of in result["tasks"].values()) for result in results])
    steps = batches if balance == STEPS else np.mean([result["iterations"] for result in results])
    seconds = np.mean([result["seconds"] for result in results])
    return f"{name:<32} {steps:9.0f} optimizer steps  {batches:9.0f} task steps  {seconds:9.0f} s"


def compare_rows(row: list[AblationRun], full: list[AblationRun]) -> MeanDifference:
    """The difference of two rows over the tasks of both."""
    ours, theirs = ([load_values(one.out / VALUES) for one in runs] for runs in (row, full))
    return mean_difference([values for values, _ in ours], [values for values, _ in theirs], ours[0][1])
