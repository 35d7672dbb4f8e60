"""The page of interference: matrices of tasks, ordered by similarity and by the paper's groups."""

from collections.abc import Sequence
from pathlib import Path

from finetune.gradients.task_gradients import ALL_PARTS, PARTS
from finetune.gradients.tracked_gradients import Tracked
from finetune.pages.html_page import escape, html_table, write_page
from finetune.pages.interference_plots import norms_over_training, similarity_over_training

STRONGEST = 80  # percent of colour in the cell with the largest absolute value


def write_interference_page(path: Path, summary: dict, tracked: Tracked | None) -> None:
    """Writes the page of a summary (reporting.interference_summary.summarise).

    tracked: the records of the same tasks during training, or None.
    """
    groups, flags, parts = summary["groups"], summary["flags"], summary["parts"]
    by_group = sorted(range(len(groups)), key=lambda task: groups[task])
    whole = parts[ALL_PARTS]
    body = [
        f"<h1>Interference of tasks: {escape(summary['run'])}</h1>",
        f"<p class=quiet>{flags['batches']} batches of {flags['batch_size']} training examples per task, "
        f"{summary['seconds']:.0f} s. Point at a cell for its 95% interval; in italics: it contains 0.</p>",
        "<h2>Similarity of gradients</h2>",
        "<p>Cosine similarity of the gradients on the shared parameters. Blue: a small step of one task also lowers "
        "the loss of the other. Orange: it raises it. On the diagonal: the gradients of a task on two batches, "
        "which limit what can be expected of two tasks.</p>",
        "<h3>Clustered</h3>",
        matrix(summary, whole["similarity"], summary["clustered"]),
        "<h3>By the paper's groups</h3>",
        matrix(summary, whole["similarity"], by_group),
        "<h3>Means of the paper's groups</h3>",
        _group_means(groups, whole["similarity"]["mean"]),
    ]
    if any(value is not None for row in whole["expected_similarity"] for value in row):
        body += [
            "<h3>Expected gradients</h3>",
            "<p>An estimate of the similarity without the noise of small batches; empty cells need more batches.</p>",
            matrix(summary, {"mean": whole["expected_similarity"]}, by_group, limit=1.0),
        ]
    for part in (part for part in PARTS if part in parts):
        body += [f"<h3>{part.capitalize()} layers</h3>", matrix(summary, parts[part]["similarity"], by_group)]
    if summary["affinity"]:
        body += [
            "<h2>Look-ahead</h2>",
            "<p>Relative decrease of the loss of the task in the column, on another batch, by a step of the task in "
            f"the row. A step is {flags['step']:.2%} of the norm of the shared weights, equal for all tasks.</p>",
            matrix(summary, summary["affinity"], by_group, percent=True),
        ]
    body += ["<h2>Losses and norms of gradients</h2>", _norms(summary, by_group)]
    if tracked is not None:
        body += _over_training(summary, tracked, by_group)
    write_page(path, "Interference of tasks", "\n".join(body), styles=["interference.css"])


def _over_training(summary: dict, tracked: Tracked, by_group: Sequence[int]) -> list[str]:
    steps, parts = tracked.steps, summary["tracked"]["parts"]
    found = [
        "<h2>Over training</h2>",
        f"<p>Similarity of gradients after {len(steps)} numbers of iterations, {steps[0]} to {steps[-1]}, on the same "
        f"{tracked.norm[ALL_PARTS].shape[1]} batches each time. Intervals are about the choice of the batches.</p>",
        similarity_over_training(tracked, summary["titles"], summary["groups"], "similarity-over-training"),
        norms_over_training(tracked, summary["titles"], "norms-over-training"),
        "<h3>Mean over training</h3>",
        matrix(summary, parts[ALL_PARTS]["similarity"], by_group),
    ]
    for part in (part for part in PARTS if part in parts):
        title = f"<h3>Mean over training, {part} layers</h3>"
        found += [title, matrix(summary, parts[part]["similarity"], by_group)]
    return found


def matrix(summary: dict, table: dict, order: Sequence[int], percent: bool = False, limit: float = 0.0) -> str:
    """A matrix of tasks as an HTML table with coloured cells.

    Args:
        summary: titles and groups of the tasks.
        table: mean, and margin of the intervals if known, each (tasks, tasks).
        order: of the tasks.
        percent: whether the values are shown in percent.
        limit: the absolute value with the strongest colour, 0 for the largest one.
    """
    means, margins = table["mean"], table.get("margin")
    limit = limit or max((abs(value) for row in means for value in row if value is not None), default=0) or 1.0
    titles = [f"{escape(summary['titles'][task])} <small>{escape(summary['groups'][task])}</small>" for task in order]
    rows = [
        [title, *(_cell(means[i][j], margins and margins[i][j], limit, percent) for j in order)]
        for title, i in zip(titles, order, strict=True)
    ]
    header = ["", *(f"<span>{title}</span>" for title in titles)]
    return f'<div class="matrix">{html_table(header, rows)}</div>'


def _cell(mean: float | None, margin: float | None, limit: float, percent: bool) -> str:
    if mean is None:
        return ""
    factor, digits, unit = (100, 2, "%") if percent else (1, 2, "")
    colour, share = "var(--right)" if mean > 0 else "var(--wrong)", STRONGEST * min(1, abs(mean) / limit)
    low, high = (mean - margin, mean + margin) if margin is not None else (mean, mean)
    kind = "" if low > 0 or high < 0 else "uncertain"
    title = f"{factor * low:+.3f}{unit} to {factor * high:+.3f}{unit}" if margin is not None else ""
    style = f"background: color-mix(in srgb, {colour} {share:.0f}%, transparent)"
    return f'<span class="{kind}" style="{style}" title="{title}">{factor * mean:+.{digits}f}</span>'


def _group_means(groups: Sequence[str], means) -> str:
    """Mean similarity of pairs of different tasks, by their groups."""
    names = sorted(set(groups))

    def mean(one: str, other: str) -> float | None:
        values = [
            means[i][j]
            for i, first in enumerate(groups)
            for j, second in enumerate(groups)
            if i != j and (first, second) == (one, other) and means[i][j] is not None
        ]
        return sum(values) / len(values) if values else None

    table = {"mean": [[mean(one, other) for other in names] for one in names]}
    summary = {"titles": names, "groups": [""] * len(names)}
    return matrix(summary, table, range(len(names)))


def _norms(summary: dict, order: Sequence[int]) -> str:
    parts = [part for part in (ALL_PARTS, *PARTS) if part in summary["parts"]]
    rows = [
        [
            escape(summary["titles"][task]),
            _with_margin(summary["loss"], task),
            *(_with_margin(summary["parts"][part]["norm"], task) for part in parts),
        ]
        for task in order
    ]
    return html_table(["", "loss", *(f"norm, {part}" for part in parts)], rows)


def _with_margin(table: dict, task: int) -> str:
    mean, margin = table["mean"][task], table["margin"][task]
    return f"{mean:.3g}" + (f" <small>± {margin:.2g}</small>" if margin is not None else "")
