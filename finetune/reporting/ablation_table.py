"""The table of an ablation: means over seeds, and differences from the full method."""

from pathlib import Path

import numpy as np
from scipy import stats

from finetune.config import AblateConfig
from finetune.decontamination.manifest import NOT_CLEANED, is_cleaned
from finetune.evaluation.bootstrap import bootstrap_means, interval_of
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import load_values, mean_row, ranking_note, render_rows
from finetune.reporting.ablation_runs import AblationRun
from finetune.reporting.ablation_suites import PAPER_TABLES
from finetune.run_dirs.result_files import VALUES, MultiResult
from pretrain.engine.run_dir import read_config
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
    results = {
        name: [read_json(one.out / "result.json", MultiResult) for one in of_row] for name, of_row in by_row.items()
    }
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
        difference, (low, high), p = compare_rows(by_row[name], by_row[full])
        lines.append(f"{name:<32} {difference:+7.2%}  ({low:+.2%} to {high:+.2%})  p = {p:.3f}")
    lines.append("interval: 95%, paired bootstrap over images; p: paired t-test over tasks and seeds")
    if note := ranking_note(*(result["tasks"] for of_row in results.values() for result in of_row)):
        lines.append(note)
    return "\n".join(lines)


def compare_rows(row: list[AblationRun], full: list[AblationRun]) -> tuple[float, tuple[float, float], float]:
    """(difference of the mean score over the shared tasks, its 95% interval, p of a paired t-test).

    The test is over tasks and seeds. The interval is a paired bootstrap over images, with all their examples, of the
    differences averaged over seeds.
    """
    kept = [[load_values(one.out / VALUES) for one in runs] for runs in (row, full)]
    ours, theirs = ([values for values, _ in of_row] for of_row in kept)
    clusters = kept[0][0][1]
    names = [name for name in ours[0] if name in theirs[0]]
    differences = {name: np.mean([a[name] - b[name] for a, b in zip(ours, theirs, strict=True)], 0) for name in names}
    draws = [bootstrap_means(of, clusters[name], seed=n) for n, (name, of) in enumerate(differences.items())]
    mean = float(np.mean([values.mean() for values in differences.values()]))
    a, b = ([values[name].mean() for values in of_row for name in names] for of_row in (ours, theirs))
    p = float(stats.ttest_rel(a, b).pvalue) if not np.array_equal(a, b) else 1.0
    return mean, interval_of(np.mean(draws, 0)), p
