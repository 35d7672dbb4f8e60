"""The report page: tables and figures in the paper's layout, and metadata of the runs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from finetune.decontamination.manifest import NOT_CLEANED
from finetune.evaluation.paper_results import paper_training
from finetune.evaluation.scores import COLUMNS, ranking_note
from finetune.pages import report_plots
from finetune.pages.html_page import escape, html_table, write_page
from finetune.reporting.paper_layout import Cell, Method, TableRow, ablation_tables, gap_scores, marked, methods, table9
from finetune.run_dirs.finished_runs import MULTI, PRETRAINING, SINGLE, Run
from finetune.tasks import find_task
from pretrain.engine.metrics_logger import duration

PAIRS = "image-caption pairs"
TITLES = {
    "table10": ("Table 10: multi-task training", "Validation scores of these runs; test scores of the paper."),
    "table11": ("Table 11: Δ of stop-and-go", "A paused task trains in one of every Δ iterations."),
    "table12": (
        "Table 12: without the fourth group",
        "The paper divides the sum of ten task scores by twelve; here its MT scores are means of the ten.",
    ),
}


def write_report(path: Path, runs: Sequence[Run]) -> None:
    """Writes the report on all runs to one HTML file."""
    found = methods(runs)
    sections = [
        ("Runs", _overview(runs)),
        ("Scores", "".join(_scores(runs, found))),
        ("Stop-and-go", "".join(_multi(runs, found))),
        ("Single-task and multi-task training", _together(runs)),
        ("Pretraining", "".join(_pretraining(runs))),
        ("Run metadata", "".join(_made(runs))),
    ]
    sections = [(title, body) for title, body in sections if body]
    links = " ".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in sections)
    parts = [f'<h2 id="{_anchor(title)}">{title}</h2>\n{body}' for title, body in sections]
    write_page(
        path,
        "Report",
        f'<h1>Report</h1>\n<nav class="bar">{links}</nav>\n' + "\n".join(parts),
        ["tables.css", "report.css"],
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _overview(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        steps = run.training[-1]["step"] if run.training else 0
        titles = [find_task(task).title for task in run.config.get("tasks", [])] or [PAIRS]
        what = titles[0] if len(titles) == 1 else f"{len(titles)} tasks"
        time = duration(run.result["seconds"]) if run.result else "not finished"
        rows.append([escape(run.name), escape(what), escape(start_of(run)), f"{steps:,}", time, _outcome(run)])
    return html_table(["run", "tasks", "initial weights", "steps", "time", "validation"], rows)


def start_of(run: Run) -> str:
    """Kind of the initial weights, and where they are; relative to the working directory, like the names of runs."""
    source = run.kind != PRETRAINING and run.config["start"]["run"]
    if not source:
        return "" if run.kind == PRETRAINING else run.initial_weights
    inside = os.path.isabs(source) and Path(source).is_relative_to(Path.cwd())
    return f"{run.initial_weights}, from {os.path.relpath(source) if inside else source}"


def _outcome(run: Run) -> str:
    if run.result is None:
        return ""
    if run.kind == PRETRAINING:
        scores = run.result["validation"]
        named = {"alignment": "alignment_accuracy", "masked tokens": "word_accuracy"}
        return ", ".join(f"{name} {scores[key]:.1%}" for name, key in named.items() if scores.get(key) is not None)
    many = run.kind == MULTI
    of = run.result if many else run.result["validation"]
    names = ("mt_score", "mt_interval") if many else ("score", "interval")
    score, (low, high) = of[names[0]], of.get(names[1]) or (None, None)  # runs of earlier versions have no interval
    interval = f" <small>({low:.1%} to {high:.1%})</small>" if low is not None else ""
    return f"{'MT score ' * many}{score:.1%}{interval}"


def _number(cell: Cell | None) -> str:
    if cell is None:
        return ""
    low, high = cell.interval or (None, None)
    interval = f"<small>{low:.1f} to {high:.1f}</small>" if cell.interval else ""
    note = f' title="{escape(cell.note)}"' if cell.note else ""
    return f"<span{note}>{cell.value:.2f}</span>{interval}"


def _scores(runs: Sequence[Run], found: Sequence[Method]):
    if any(run.validated for run in runs):
        columns, rows = table9(runs)
        shown = [[row.name, *(_number(row.cells.get(column)) for column in columns)] for row in rows]
        for line, row in zip(shown, rows, strict=True):
            own = {cell.note for name, cell in row.cells.items() if not name.startswith("the paper")}
            line.append(escape("; ".join(sorted(own))))
        yield "<h3>Table 9: single-task fine-tuning (ST), and from multi-task weights (AT->ST)</h3>"
        yield (
            '<p class="quiet">AT: multi-task run, validation scores. Other columns: test scores that finetune.evaluate '
            "has stored in the run (testA and testB pooled), else validation scores; the last column names the split. "
            "The paper's table 9 is on the full data sets, its tables 10 to 12 on cleaned ones. Small: 95% "
            "intervals.</p>"
        )
        yield html_table(["", *columns, "split of these runs"], shown)
    for suite, rows in ablation_tables(found).items():
        title, note = TITLES[suite]
        mark = f"The paper's models were trained on cleaned data; runs without --clean are marked {NOT_CLEANED!r}."
        if ranked := ranking_note(*(run.result["tasks"] for one in found for run in one.runs)):
            mark += f" {ranked}."
        yield f'<h3>{title}</h3><p class="quiet">{note} {escape(mark)} Small: 95% intervals over images.</p>'
        columns = [column for column in COLUMNS if any(column in row.cells for row in rows)]
        kinds = ["paper" if row.paper else "own" for row in rows]
        yield html_table(["", *columns], [_line(row, columns) for row in rows], kinds)
    for cleaned in (True, False):
        if scores := gap_scores([one for one in found if one.cleaned == cleaned]):
            yield report_plots.gaps(scores, "gaps" if cleaned else "gaps-not-cleaned", cleaned)


def _line(row: TableRow, columns: Sequence[str]) -> list[str]:
    return [escape(row.name), *(_number(row.cells.get(column)) for column in columns)]


def _multi(runs: Sequence[Run], found: Sequence[Method]):
    """Figure 6 of the first run of each method."""
    finished = {one.runs[0].name for one in found}
    for number, run in enumerate(run for run in runs if run.kind == MULTI):
        if not run.validation or (run.result is not None and run.name not in finished):
            continue
        yield report_plots.stop_and_go(run, f"stop-and-go-{number}")
        if run.result is not None:
            yield report_plots.sizes_and_updates(run, f"sizes-{number}")


def _together(runs: Sequence[Run]) -> str:
    multi = next((run for run in runs if run.kind == MULTI), None)
    single = list(
        {(run.initial_weights, run.config["tasks"][0]): run for run in reversed(runs) if run.kind == SINGLE}.values()
    )
    return report_plots.together_and_alone(multi, single[::-1], "together") if single else ""


def _pretraining(runs: Sequence[Run]):
    for number, run in enumerate(run for run in runs if run.kind == PRETRAINING and run.training):
        yield report_plots.pretraining(run, f"pretraining-{number}")


def _made(runs: Sequence[Run]):
    rows = []
    for run in runs:
        made = run.config.get("made") or {}
        version = " ".join(filter(None, [made.get("version"), made.get("commit")]))
        ranks = f"{made['ranks']} x {made['device']}" if made else ""
        torch = f"Python {made['python']}, torch {made['torch']}" if made else ""
        rows.append([escape(cell) for cell in (run.name, made.get("began", ""), version, torch, ranks)])
    yield html_table(["run", "started", "code", "software", "hardware"], rows)
    yield "<h3>Data sets</h3>"
    yield _data_sets(runs)
    yield "<h3>Configurations</h3>"
    for run in runs:
        text = escape(json.dumps(run.config, indent=1, ensure_ascii=False))
        yield f"<details><summary>{escape(run.name)}</summary><pre>{text}</pre></details>"


def _data_sets(runs: Sequence[Run]) -> str:
    """Numbers of training and validation examples, one row per task and size, next to the paper's training set: the
    cleaned or the full one, as for the run."""
    rows: dict[tuple, list[str]] = {}
    for run in runs:
        if run.kind == PRETRAINING:
            pairs = run.result["pairs"] if run.result else run.config["data"]["samples"]
            held_out = (run.result or {}).get("validation", {}).get("pairs", "")
            rows.setdefault((PAIRS, pairs), [PAIRS, f"{pairs:,}", f"{held_out:,}" if held_out else "", ""])
        for task, scores in run.validated.items():
            trained = scores.get("trained_on", run.result.get("examples"))
            of, cleaned = find_task(task), run.cleaned
            paper = paper_training(of, cleaned)
            title = escape(marked(of.title, cleaned))
            cells = [title, *(f"{number:,}" if number else "" for number in (trained, scores["examples"], paper))]
            rows.setdefault((task, cleaned, trained, scores["examples"]), cells)
    return html_table(["", "training", "validation", "training in the paper"], list(rows.values()))
