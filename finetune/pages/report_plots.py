"""The plots of a report: figures 2, 6 and 7 of the paper, and pretraining curves."""

from collections.abc import Sequence

from finetune.evaluation.scores import FOUR_WAY
from finetune.pages.vector_plots import (
    COLUMNS,
    DASHES,
    INK,
    LINE,
    MARKERS,
    SERIES,
    drawing,
    legend,
    panels,
    percent_axis,
    plot,
    whole_steps,
)
from finetune.reporting.paper_layout import Cell, marked, paper_gap_scores
from finetune.run_dirs.finished_runs import Run
from finetune.tasks import find_task


def stop_and_go(run: Run, name: str) -> str:
    """Figure 6, top: every task's validation score, shaded where the task was paused."""
    tasks = run.config["tasks"]
    rows = -(-len(tasks) // COLUMNS)
    with drawing(11, 2.1 * rows + 0.5, rows, COLUMNS, sharex=True) as (figure, axes):
        for axis, task in panels(axes, tasks):
            points = validated(run, f"{task}/")
            if points:
                axis.plot(*zip(*points, strict=True), "-o", color=SERIES[0], label="validation score")
            for number, (begin, end) in enumerate(paused_spans(run, task)):
                label = None if number else "paused"
                axis.axvspan(begin, end, facecolor=LINE, edgecolor=INK, alpha=0.6, hatch="///", label=label)
            axis.set_title(find_task(task).title)
            percent_axis(axis, [score for _, score in points])
            whole_steps(axis)
        legend(figure, axes)
        figure.supxlabel("iteration", fontsize=9)
        return plot(figure, name, f"Figure 6, top: validation scores of every task of {run.name}; shaded: task paused.")


def validated(run: Run, prefix: str = "") -> list[tuple[int, float]]:
    """(step, score) of every validation of a task: the score for stop-and-go and checkpoint selection.

    prefix: of the task's keys in metrics.jsonl. For retrieval, runs of earlier versions have R@1 only.
    """
    lines = [(line["step"], line.get(f"{prefix}{FOUR_WAY}", line.get(f"{prefix}score"))) for line in run.validation]
    return [(step, score) for step, score in lines if score is not None]


def paused_spans(run: Run, task: str) -> list[tuple[int, int]]:
    """(first step, last step) of every span in which a task was paused; an open span ends at the last logged step."""
    spans, since = [], None
    lines = [line for line in run.validation if f"{task}/going" in line]
    for line in lines:
        if not line[f"{task}/going"] and since is None:
            since = line["step"]
        elif line[f"{task}/going"] and since is not None:
            spans.append((since, line["step"]))
            since = None
    if since is not None:
        spans.append((since, max(line["step"] for line in run.validation + run.training)))
    return spans


def sizes_and_updates(run: Run, name: str) -> str:
    """Figure 6, bottom: the number of training examples and of updates of every task."""
    of = {}
    for task in run.config["tasks"]:  # runs of earlier versions lack some of these numbers
        of[task] = {key: run.result["tasks"][task].get(key) or 0 for key in ("trained_on", "steps")}
    order = sorted(of, key=lambda task: of[task]["trained_on"])
    titles = [find_task(task).title for task in order]
    with drawing(11, 0.28 * len(order) + 1, 1, 2, sharey=True) as (figure, axes):
        for axis, key, label in ((axes[0, 0], "trained_on", "training examples"), (axes[0, 1], "steps", "updates")):
            values = [of[task][key] for task in order]
            axis.barh(titles, values, color=SERIES[0 if key == "steps" else 1], height=0.6)
            for place, value in enumerate(values):
                axis.text(value, place, f" {value:,}", va="center")
            axis.set_xlabel(label)
            axis.margins(x=0.15)
            axis.grid(axis="y", visible=False)
        return plot(figure, name, f"Figure 6, bottom: training examples and updates of every task of {run.name}.")


def together_and_alone(multi: Run | None, single: Sequence[Run], name: str) -> str:
    """Figure 7: training and validation scores of each task, in single-task and multi-task training.

    multi: a multi-task run, or None; single: single-task runs.
    """
    of_task: dict[str, list[tuple[str, Run, str]]] = {}
    if multi is not None:
        for task in multi.config["tasks"]:
            of_task.setdefault(task, []).append(("AT", multi, f"{task}/"))
    for run in single:
        of_task.setdefault(run.config["tasks"][0], []).append((run.initial_weights, run, ""))
    kinds = list(dict.fromkeys(kind for of in of_task.values() for kind, _, _ in of))
    rows = -(-len(of_task) // COLUMNS)
    with drawing(11, 2.1 * rows + 0.6, rows, min(COLUMNS, len(of_task))) as (figure, axes):
        for axis, task in panels(axes, list(of_task)):
            values = []
            for kind, run, prefix in of_task[task]:
                style, key = kinds.index(kind) % len(SERIES), f"{prefix}score"
                points = [(line["step"], line[key]) for line in run.training if line.get(key) is not None]
                held_out = validated(run, prefix)
                values += [value for _, value in points + held_out]
                for what, shown, marks in (("training", points, DASHES), ("validation", held_out, MARKERS)):
                    if shown:
                        label = f"{kind}, {what}"
                        axis.plot(*zip(*shown, strict=True), marks[style], color=SERIES[style], label=label)
            axis.set_title(find_task(task).title)
            percent_axis(axis, values)
            whole_steps(axis)
        legend(figure, axes)
        figure.supxlabel("step (single-task) or iteration (multi-task)", fontsize=9)
        return plot(figure, name, "Figure 7: training and validation scores in single-task and multi-task training.")


def gaps(scores: dict[int, Cell], name: str, cleaned: bool) -> str:
    """Figure 2: the MT score by Δ of stop-and-go. cleaned: whether the runs were trained with --clean."""
    with drawing(8, 3, 1, 2) as (figure, axes):
        ours, theirs = axes[0]
        low = [cell.value - cell.interval[0] if cell.interval else 0 for cell in scores.values()]
        high = [cell.interval[1] - cell.value if cell.interval else 0 for cell in scores.values()]
        values = [cell.value for cell in scores.values()]
        ours.errorbar(list(scores), values, (low, high), fmt="-o", color=SERIES[0], capsize=3)
        ours.set_title(f"{marked('these runs', cleaned)}, with 95% intervals")
        paper = paper_gap_scores()
        theirs.plot(list(paper), list(paper.values()), "--s", color=SERIES[1])
        theirs.set_title("the paper")
        for axis, places in ((ours, list(scores)), (theirs, list(paper))):
            axis.set_xscale("log", base=2)
            axis.set_xticks(places, map(str, places))
            axis.set_xlabel("Δ, iterations")
            axis.set_ylabel("MT score, %")
        return plot(figure, name, "Figure 2: MT score by Δ; a paused task is updated in one of every Δ iterations.")


def pretraining(run: Run, name: str) -> str:
    """Losses and accuracies of a pretraining run."""
    names = [key.removeprefix("loss_") for key in (run.training or [{}])[0] if key.startswith("loss_")]
    losses, shares = {name: f"loss_{name}" for name in names}, {name: f"{name.rstrip('s')}_accuracy" for name in names}
    with drawing(11, 3, 1, 2) as (figure, axes):
        for axis, keys, title in ((axes[0, 0], losses, "loss"), (axes[0, 1], shares, "accuracy")):
            for style, (what, key) in enumerate(keys.items()):
                for lines, kind in ((run.training, "training"), (run.validation, "validation")):
                    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
                    mark = DASHES[style] if kind == "training" else MARKERS[style]
                    if points:
                        axis.plot(*zip(*points, strict=True), mark, color=SERIES[style], label=f"{what}, {kind}")
            axis.set_title(title)
            axis.set_xlabel("step")
            whole_steps(axis, 6)
        percent_axis(axes[0, 1], [0, 1])
        legend(figure, axes)
        return plot(figure, name, f"Pretraining of {run.name}: the terms of the loss.")
