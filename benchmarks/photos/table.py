"""The table: rows of every task with intervals, blind scores and chance, and differences between rows."""

from collections.abc import Mapping, Sequence

from benchmarks.photos.runs import ABLATIONS, AT, AT_ST, FOLDED, MAIN_ROWS, RETRIEVAL, ST, TASKS, ZERO_SHOT
from benchmarks.photos.scoring import Scores, averaged, first_captions, pooled
from finetune.tasks import find_task

LINEAR = "linear baseline (CCA)"
# Image retrieval R@1, 5, 10 as published, on Flickr8k's 1,000 test images in their full size.
PUBLISHED = {
    "DVSA, R-CNN": (11.8, 32.1, 44.7),
    "m-CNN ensemble": (20.3, 47.6, 61.7),
    "FV": (21.2, 50.0, 64.8),
    "SCAN, bottom-up features": (38.3, 67.8, 78.9),
}
MEANINGS = {
    ZERO_SHOT: "zero-shot, after pretraining",
    AT: "AT, all tasks together",
    ST: "ST, each alone",
    AT_ST: "AT->ST",
} | {name: f"{name}: {ablation.meaning}" for name, ablation in ABLATIONS.items()}
TITLES = {RETRIEVAL: "Flickr8k image retrieval"}
WIDTH = 2 + max(map(len, MEANINGS.values()))

Results = Mapping[str, Mapping[str, Mapping[int, Scores]]]  # row -> task -> fold -> scores, means over seeds


def render(results: Results, seeds: Mapping[str, int], linear: Scores | None) -> str:
    """The table as text. seeds: number of seeds of each row."""
    parts = [", ".join(f"{row} of {count}" for row, count in seeds.items())]
    parts[0] = f"development parts; means of seeds: {parts[0]}; intervals: 95%, over images"
    for task in TASKS:
        rows = {row: results[row][task] for row in results if task in results[row]}
        if rows:
            parts += (
                _retrieval(rows, linear) if task == RETRIEVAL else [_section(task, _pooled(rows)), _folds(task, rows)]
            )
            parts.append(_differences(task, rows))
    return "\n\n".join(part for part in parts if part)


def _pooled(rows: Mapping[str, Mapping[int, Scores]]) -> dict[str, Scores]:
    return {MEANINGS[row]: pooled(list(folds.values())) for row, folds in rows.items()}


def _retrieval(rows: Mapping[str, Mapping[int, Scores]], linear: Scores | None) -> list[str]:
    """Retrieval: all captions for the main rows, one caption per image for ablations and their baseline row."""
    main = {row: folds for row, folds in rows.items() if row in MAIN_ROWS}
    ablated = {row: folds for row, folds in rows.items() if row in ABLATIONS}
    parts = []
    if main or linear:
        scored = ({LINEAR: linear} if linear else {}) | _pooled(main)
        published = [
            _line(name, "", f"{first:.1f}%", "", [f"{value:.1f}%" for value in others], [], "")
            for name, (first, *others) in PUBLISHED.items()
        ]
        parts.append("\n".join([_section(RETRIEVAL, scored), "published, on the test images:", *published]))
    if ablated:
        compared = {AT: {0: of_first_captions(rows[AT][0])}} if AT in rows else {}
        parts.append(_section(RETRIEVAL, _pooled(compared | ablated), "one caption per image"))
    return parts


def of_first_captions(scores: Scores) -> Scores:
    """Retrieval scores of one caption per image; the ranking for a caption does not depend on other captions."""
    return scores.chosen(first_captions(scores.images))


def _section(task: str, rows: Mapping[str, Scores], note: str = "") -> str:
    """The rows of a task: every metric, the main one with its interval, chance, and blind scores."""
    names = _metrics(next(iter(rows.values())))
    header = _line(note, "examples", names[0], "", names[1:], ["chance", "blind"], "score less blind")
    lines = [TITLES.get(task, find_task(task).title), header]
    for name, scores in rows.items():
        known = {metric: values.mean() for metric, values in scores.metrics.items()} | scores.further
        main, *others = (f"{known[metric]:.1%}" for metric in names)
        gain, *around = scores.gain(scores.blind)
        compared = [f"{scores.chance:.1%}", f"{scores.blind.mean():.1%}"]
        examples = f"{len(scores.main)}"
        lines.append(
            _line(
                name,
                examples,
                main,
                _between(scores.interval),
                others,
                compared,
                f"{gain:+.1%} {_between(around, '+')}",
            )
        )
    return "\n".join(lines)


def _metrics(scores: Scores) -> list[str]:
    """The metrics to show: the main one and others except R@1, which equals the accuracy of Flickr30k Entities."""
    first, *others = [*scores.metrics, *scores.further]
    return [first, *(name for name in others if name != "R@1")]


def _between(interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"({low:{sign}.1%} to {high:{sign}.1%})"


def _line(
    label: str, examples: str, main: str, interval: str, others: Sequence[str], compared: Sequence[str], last: str
) -> str:
    """A row of a section, or its header."""
    cells = "".join(f"{cell:>13}" for cell in others) + "".join(f"{cell:>9}" for cell in compared)
    return f"{label:<{WIDTH}}{examples:>9}{main:>10} {interval:<18}{cells}   {last}".rstrip()


def _folds(task: str, rows: Mapping[str, Mapping[int, Scores]]) -> str:
    """A note on rows with only some of the folds."""
    counts = {row: len(folds) for row, folds in rows.items()}
    if task != FOLDED or len(set(counts.values())) == 1:
        return ""
    return "cross-validation by image, folds: " + ", ".join(f"{count} of {row}" for row, count in counts.items())


def _differences(task: str, rows: Mapping[str, Mapping[int, Scores]]) -> str:
    """Differences between rows in the main metric on common examples: AT->ST and ST, ablations and their baseline."""
    bases = [(AT_ST, ST)] + [(name, ablation.base) for name, ablation in ABLATIONS.items()]
    lines = []
    for row, base in bases:
        if row not in rows or base not in rows:
            continue
        folds = sorted(set(rows[row]) & set(rows[base]))
        ours, theirs = (pooled([rows[name][fold] for fold in folds]) for name in (row, base))
        if task == RETRIEVAL and row in ABLATIONS:
            theirs = of_first_captions(theirs)
        gain, low, high = ours.gain(theirs.main)
        lines.append(f"{row} less {base}: {gain:+.1%} ({low:+.1%} to {high:+.1%}), on {len(ours.main)} examples")
    return "\n".join(lines)


def complete_rows(by_seed: Sequence[Mapping[str, Mapping[tuple[str, int], Scores]]]) -> tuple[Results, dict[str, int]]:
    """(means over seeds, number of seeds) of every row that is complete for some seed.

    by_seed: of each seed, row -> (task, fold) -> scores.
    """
    results: dict[str, dict[str, dict[int, Scores]]] = {}
    seeds: dict[str, int] = {}
    for row in MEANINGS:
        have = [of_seed[row] for of_seed in by_seed if row in of_seed]
        if have:
            seeds[row] = len(have)
            for task, fold in have[0]:
                of_row = results.setdefault(row, {}).setdefault(task, {})
                of_row[fold] = averaged([scored[task, fold] for scored in have])
    return results, seeds
