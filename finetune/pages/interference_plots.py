"""Plots of the similarities and norms of the tasks' gradients over training."""

from collections.abc import Sequence

import numpy as np

from finetune.gradients.interference_measurement import mean_and_margin
from finetune.gradients.task_gradients import ALL_PARTS, PARTS
from finetune.gradients.tracked_gradients import Tracked
from finetune.pages.vector_plots import COLUMNS, DASHES, INK, SERIES, drawing, legend, panels, plot, whole_steps


def similarity_over_training(tracked: Tracked, titles: Sequence[str], groups: Sequence[str], name: str) -> str:
    """A panel per task: its mean similarity with the other tasks of every group, with 95% intervals over the batches.

    Args:
        tracked: the records.
        titles, groups: of the tasks.
        name: id of the figure on its page.
    """
    names, rows = sorted(set(groups)), -(-len(titles) // COLUMNS)
    with drawing(11, 2.1 * rows + 0.5, rows, min(COLUMNS, len(titles)), sharex=True, sharey=True) as (figure, axes):
        for row, (axis, title) in enumerate(panels(axes, titles)):
            axis.axhline(0, color=INK, linewidth=0.7)
            for style, group in enumerate(names):
                others = [other for other, of in enumerate(groups) if of == group and other != row]
                if others:
                    values = tracked.similarity[ALL_PARTS][:, :, row, others].mean(2)  # (records, batches)
                    mean, margin = mean_and_margin(values.T)
                    look = {"color": SERIES[style % len(SERIES)], "label": f"with {group}"}
                    axis.plot(tracked.steps, mean, DASHES[style % len(DASHES)], marker=".", **look)
                    axis.fill_between(
                        tracked.steps, mean - margin, mean + margin, color=look["color"], alpha=0.15, linewidth=0
                    )
            axis.set_title(title)
            whole_steps(axis)
        legend(figure, axes)
        figure.supxlabel("iteration", fontsize=9)
        return plot(figure, name, "Mean cosine similarity of a task's gradient with those of the tasks of each group.")


def norms_over_training(tracked: Tracked, titles: Sequence[str], name: str) -> str:
    """A panel per task: the norms of its gradients on the parts of the model, mean over the batches."""
    rows = -(-len(titles) // COLUMNS)
    parts = [part for part in (ALL_PARTS, *PARTS) if part in tracked.norm]
    with drawing(11, 2.1 * rows + 0.5, rows, min(COLUMNS, len(titles)), sharex=True, sharey=True) as (figure, axes):
        for row, (axis, title) in enumerate(panels(axes, titles)):
            for style, part in enumerate(parts):
                norms = np.nanmean(tracked.norm[part][:, :, row], 1)
                axis.plot(tracked.steps, norms, DASHES[style], marker=".", color=SERIES[style], label=part)
            axis.set_yscale("log")
            axis.set_title(title)
            whole_steps(axis)
        legend(figure, axes)
        figure.supxlabel("iteration", fontsize=9)
        return plot(figure, name, "Norms of the gradients on the shared parameters and their parts.")
