"""Tables 9 to 12 of the paper, with the scores of runs next to the paper's."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from finetune.config import FREE_FLAGS, TESTS, MtConfig
from finetune.decontamination.manifest import NOT_CLEANED
from finetune.evaluation.bootstrap import bootstrap_means, interval_of
from finetune.evaluation.paper_results import paper_row, paper_table
from finetune.evaluation.scores import COLUMNS, RANKED_IMAGES, load_values, mean_row
from finetune.reporting.ablation_suites import PAPER_TABLES, SUITES
from finetune.run_dirs.finished_runs import MULTI, SINGLE, Run
from finetune.run_dirs.result_files import VALUES
from finetune.task_types.base import Task
from finetune.tasks import all_tasks, find_task, paper_tasks
from pretrain.config import PretrainConfig
from pretrain.engine.run_dir import CONFIG, read_flags

TABLE9 = "table9_full_dataset"
TABLE9_COLUMNS = {  # rows of table 9 -> columns of table 10, where the names differ
    **{f"IR COCO R{k}": f"RC R@{k}" for k in (1, 5, 10)},
    **{f"IR Flickr R{k}": f"RF R@{k}" for k in (1, 5, 10)},
}
MAIN = ("score", "R@1")  # metrics whose intervals are stored
INITIAL_WEIGHTS = (
    "scratch",
    "BERT",
    "ST",
    "AT",
    "AT->ST",
)  # columns of table 9: kinds of initial weights; AT: a multi-task run

NOT_PRETRAINED = ("BERT", "scratch")  # initial weights without pretraining

# Flags by which multi-task runs of the same method may differ: paths, length of training, hardware.
NO_METHOD = FREE_FLAGS | {
    *("data", "init", "seed", "device", "precision", "iterations", "epochs", "validate_on", "lr_scale", "save_every"),
    *("config", "tokenizer", "missing", "vqa_answers", "gqa_answers"),
    *("groups", "together"),  # they choose the tasks of a run, which are in `tasks`
    "clean",  # part of the paper's method; runs without it are marked
}

# Flags that define the objective of a pretraining run.
OBJECTIVE = ("region_target", "overlap", "aligned_only", "predict_overlapped")


@dataclass(frozen=True)
class Cell:
    """A score in percent. interval: its 95% interval, in percent; note: split and number of images or runs."""

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A table row: column -> cell. paper: whether it contains the paper's numbers."""

    name: str
    cells: dict[str, Cell]
    paper: bool = False


@dataclass(frozen=True)
class Method:
    """Multi-task runs that differ only in their seeds.

    changes: flags that differ from the defaults; cleaned: whether they were trained with --clean.
    """

    changes: dict
    cleaned: bool
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the method's table row, if it is not a row of the paper."""
        words = [f"{name} {value}" for name, value in self.changes.items()]
        return self.describe(", ".join(words) or "the full method")

    def describe(self, name: str) -> str:
        """A row's name with the number of iterations, and a mark if the runs were trained without --clean."""
        return marked(f"{name}, {self.runs[0].result['iterations']} iterations", self.cleaned)


def marked(name: str, cleaned: bool) -> str:
    """A name that is compared with the paper's, with a mark for training without --clean."""
    return name if cleaned else f"{name}, {NOT_CLEANED}"


def table9(runs: Iterable[Run]) -> tuple[list[str], list[TableRow]]:
    """(columns, rows) of table 9: per task, the paper's ST and AT->ST and the scores of the runs.

    The score of a run is the test score that finetune.evaluate has stored (for RefCOCO and RefCOCO+ that of testA and
    testB pooled, if stored), else the validation score. Runs without --clean have their own columns.
    """
    runs, rows, shown = list(runs), [], {}
    columns = [(weights, cleaned) for weights in INITIAL_WEIGHTS for cleaned in (True, False)]
    for name in paper_table(TABLE9)["rows"]:
        task, metric = COLUMNS[TABLE9_COLUMNS.get(name, name)]
        numbers = paper_row(TABLE9, name)
        cells = {
            f"the paper's {weights}": Cell(numbers[weights], note=numbers["split"]) for weights in ("ST", "AT->ST")
        }
        for weights, cleaned in columns:
            of = (run for run in runs if run.cleaned == cleaned)
            if own := [cell for run in of if (cell := _scored(run, weights, task, metric))]:
                column = marked(weights, cleaned)
                shown[column] = None
                cells[column] = own[0] if len(own) == 1 else _mean(own)
        rows.append(TableRow(name, cells))
    order = [column for weights, cleaned in columns if (column := marked(weights, cleaned)) in shown]
    return ["the paper's ST", "the paper's AT->ST", *order], rows


def _scored(run: Run, weights: str, task: str, metric: str) -> Cell | None:
    """A run's cell in table 9; None if it has other initial weights or no score of the task."""
    if weights != {MULTI: "AT", SINGLE: run.config.get("start", {}).get("kind")}.get(run.kind):
        return None
    of = find_task(task)
    split, scores = _test_scores(run, of) or (of.splits[1], run.validated.get(task))
    if scores is None:
        return None
    known = metric in MAIN and "interval" in scores
    interval = tuple(100 * end for end in scores["interval"]) if known else None
    return Cell(100 * scores[metric], interval, ", ".join(filter(None, (split, _ranked(scores)))))


def _ranked(scores: dict) -> str:
    """A note on R@k that ranks another number of images than in the paper, else ""."""
    images = scores.get("images", RANKED_IMAGES)
    return "" if images == RANKED_IMAGES else f"among {images:,} images"


def _test_scores(run: Run, task: Task) -> tuple[str, dict] | None:
    """(split, scores) of a task's test that finetune.evaluate has stored, or None.

    For a test of several splits, the pooled score as in the paper; if it is not stored, that of the first split.
    """
    kept = {split: scores for (name, split), scores in run.evaluations.items() if name == task.name}
    if TESTS in kept:
        return " + ".join(kept[TESTS]["splits"]), kept[TESTS]
    return next(((split, kept[split]) for split in task.splits if task.is_test(split) and split in kept), None)


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell.value for cell in cells]
    return Cell(float(np.mean(values)), None, f"{cells[0].note}, mean of {len(values)} runs")


def methods(runs: Iterable[Run]) -> list[Method]:
    """The finished multi-task runs, grouped by method, data and number of iterations; those without --clean last."""
    found: dict[str, Method] = {}
    for run in runs:
        if run.kind != MULTI or run.result is None:
            continue
        changes = _changed(run.flags, MtConfig, set(run.flags) - NO_METHOD)
        changes |= _pretraining(run) if run.initial_weights == "ST" else {"init": run.initial_weights}
        key = json.dumps([changes, run.cleaned, run.result["iterations"], run.flags["data"]], sort_keys=True)
        found.setdefault(key, Method(changes, run.cleaned)).runs.append(run)
    return sorted(found.values(), key=lambda one: not one.cleaned)


def _changed(flags: dict, config: type, names: Iterable[str]) -> dict:
    """The flags with these names whose values differ from the defaults of `config`."""
    defaults = {one.name: one.default for one in fields(config)}
    return {name: flags[name] for name in defaults if name in names and flags.get(name) != defaults[name]}


def _pretraining(run: Run) -> dict:
    """Flags of the objective of a run's pretraining that differ from the defaults; empty if it is not found."""
    pretraining = Path(run.config["start"]["run"] or "")
    return (
        _changed(read_flags(pretraining, PretrainConfig), PretrainConfig, OBJECTIVE)
        if (pretraining / CONFIG).is_file()
        else {}
    )


def ablation_tables(found: Sequence[Method]) -> dict[str, list[TableRow]]:
    """Table -> rows: each row of the paper is followed by the runs of the same method.

    The first table also contains all methods that are not in the paper. The other tables are included only if there
    are runs of more than the full method.
    """
    tables, placed = {}, set()
    for suite, table in PAPER_TABLES.items():
        rows, count = [], 0
        for name, row in SUITES[suite].items():
            cells = {column: Cell(value) for column, value in paper_row(table, name).items()}
            changes = _changed(row.flags, MtConfig, row.flags)
            same = [changes] if row.pretrained else [changes | {"init": init} for init in NOT_PRETRAINED]
            shown = f"Δ {name}" if suite == "table11" else name
            rows.append(TableRow(f"the paper: {shown}", cells, True))
            for number, method in enumerate(found):
                if method.changes in same:
                    rows.append(TableRow(method.describe(shown), method_cells(method)))
                    placed.add(number)
                    count += bool(method.changes)
        tables[suite] = rows, count
    others = [TableRow(one.name, method_cells(one)) for number, one in enumerate(found) if number not in placed]
    (first, (rows, _)), *more = tables.items()
    shown = {first: others + rows} if found else {}
    return shown | {suite: rows for suite, (rows, count) in more if count}


def method_cells(method: Method) -> dict[str, Cell]:
    """Columns of table 10, averaged over a method's runs, with intervals of the tasks and of the MT score."""
    draws, seeds = _draws(method.runs), len(method.runs)
    note = f"mean of {seeds} seeds" if seeds > 1 else ""
    cells = {}
    for column, value in mean_row([run.result["tasks"] for run in method.runs]).items():
        place, own = COLUMNS[column], []
        if value is None:
            continue
        ranked = ""
        if isinstance(place, tuple):
            own = [draws[place[0]]] if place[0] in draws and place[1] in MAIN else []
            ranked = _ranked(method.runs[0].result["tasks"][place[0]])
        elif place == "all":
            own = [of for name, of in draws.items() if name in paper_tasks()]
        interval = interval_of(100 * np.mean(own, 0)) if own else None
        cells[column] = Cell(value, interval, ", ".join(filter(None, (note, ranked))))
    return cells


def _draws(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Task -> bootstrap samples of its score, over the same images in all runs; empty if not all runs stored values."""
    files = [run.path / VALUES for run in runs]
    if not all(map(Path.exists, files)):
        return {}
    kept = [load_values(file) for file in files]
    tokens, clusters = {name: task.token for name, task in all_tasks().items()}, kept[0][1]
    return {
        name: bootstrap_means(np.mean([values[name] for values, _ in kept], 0), clusters[name], seed=tokens[name])
        for name in clusters
    }


def gap_scores(found: Sequence[Method]) -> dict[int, Cell]:
    """Δ -> MT score of the full method; empty if there are runs of only one Δ. found: all cleaned, or none."""
    default = MtConfig.gap
    scores = {
        one.changes.get("gap", default): method_cells(one)["MT Score"] for one in found if set(one.changes) <= {"gap"}
    }
    return dict(sorted(scores.items())) if len(scores) > 1 else {}


def paper_gap_scores() -> dict[int, float]:
    """Δ -> MT score in the paper."""
    table = PAPER_TABLES["table11"]
    return dict(sorted((int(gap), paper_row(table, gap)["MT Score"]) for gap in SUITES["table11"]))
