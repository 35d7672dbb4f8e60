"""The page that compares the predictions of two runs for the same examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.config import ExamplesConfig
from finetune.evaluation.paired_test import PairedTest
from finetune.inference.judged_examples import RIGHT_ABOVE
from finetune.inference.judged_pairs import OUTCOMES, JudgedPair, TwoRuns, choose_pairs, compare, count_outcomes
from finetune.pages.example_page import Card, card_with_attention, described, pictures_of
from finetune.pages.html_page import data_block, escape, fill_template, html_table, write_page
from finetune.task_types.base import Task

HEADER = ("", "A", "B", "A − B", "McNemar p", *OUTCOMES)
OWN = ("right", "value", "choices", "chosenBox", "images", "attention")  # what a card has for each run


@dataclass(frozen=True)
class ComparedTask:
    """The comparison of two runs on a task. counts: number of examples of every outcome; shown: pairs on the page."""

    task: Task
    split: str
    metric: str
    counts: dict[str, int]
    test: PairedTest
    shown: list[tuple[JudgedPair, Card, Card]]

    def __str__(self) -> str:
        test, counted = self.test, ", ".join(f"{name} {count}" for name, count in self.counts.items())
        low, high = test.interval
        p_value = "" if test.p_value is None else f", McNemar p {p_text(test.p_value)}"
        return (
            f"{self.task.title}, {self.split}: {self.metric} A {test.first:.1%}, B {test.second:.1%}, "
            f"A - B {100 * test.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){p_value}; {counted}"
        )


def p_text(value: float) -> str:
    """A p-value with two significant digits."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def compare_task(
    runs: TwoRuns, task: Task, split: str, config: ExamplesConfig, out: Path, folder: str | None
) -> ComparedTask:
    """Compares two runs on the first examples of a split, and writes attention maps of the examples that are shown.

    config: flags; out: path of the page; folder: name of the folder next to it for the attention maps, None for none.
    """
    pairs, first, second = runs.judge(task, split, config.examples, config.batch_size)
    shown = []
    for pair in choose_pairs(pairs, config.count):
        cards = []
        both = ((runs.first, first, pair.first, "a"), (runs.second, second, pair.second, "b"))
        for loader, opened, one, name in both:
            page = folder and f"{folder}/{task.name}-{one.number}-{name}.html"
            cards.append(card_with_attention(loader.config.run, opened, one, out, page))
        shown.append((pair, *cards))
    metric = pairs[0].first.metric
    return ComparedTask(task, split, metric, count_outcomes(pairs), compare(task, pairs), shown)


def write_comparison(path: Path, first: str, second: str, tasks: Sequence[ComparedTask], limit: int) -> None:
    """Writes the page.

    Args:
        path: its path.
        first, second: run A and run B.
        tasks: the comparisons.
        limit: maximum number of examples of a task that were predicted.
    """
    cards = [_described(of, *one) for of in tasks for one in of.shown]
    data = {
        "pictures": pictures_of([card for of in tasks for _, *both in of.shown for card in both]),
        "cards": cards,
        "counts": {of.task.title: of.counts for of in tasks},
    }
    body = fill_template("comparison.html", FIRST=first, SECOND=second, RIGHT=f"{RIGHT_ABOVE}", LIMIT=f"{limit:,}")
    body = body.replace("<!-- table -->", html_table(HEADER, list(_rows(tasks))))
    write_page(
        path,
        f"{first} and {second}",
        body + data_block("data", data),
        styles=["tables.css", "examples.css"],
        scripts=["elements.js", "cards.js", "comparison.js"],
    )


def _rows(tasks: Sequence[ComparedTask]) -> Iterator[list[str]]:
    for of in tasks:
        test, examples = of.test, sum(of.counts.values())
        low, high = test.interval
        yield [
            f"{escape(of.task.title)}<small>{escape(f'{of.metric}, {of.split}, {examples:,} examples')}</small>",
            f"{test.first:.1%}",
            f"{test.second:.1%}",
            f"{100 * test.difference:+.1f}<small>{100 * low:+.1f} to {100 * high:+.1f}</small>",
            "" if test.p_value is None else escape(p_text(test.p_value)),
            *(f"{of.counts[name]:,}<small>{of.counts[name] / examples:.1%}</small>" for name in OUTCOMES),
        ]


def _described(of: ComparedTask, pair: JudgedPair, first: Card, second: Card) -> dict:
    """A card for comparison.js: what the example has, and what each run has."""
    both = [described(card) for card in (first, second)]
    shared = {name: value for name, value in both[0].items() if name not in (*OWN, "regions")}
    return shared | {"outcome": pair.outcome, "runs": [{name: one[name] for name in OWN} for one in both]}
