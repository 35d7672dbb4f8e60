"""Prints the result of a multi-task run next to the paper's."""

from finetune.decontamination.manifest import NOT_CLEANED
from finetune.evaluation.paper_results import paper_row
from finetune.evaluation.scores import ranking_note, render_rows, table_row
from finetune.tasks import find_task
from shards.common.counted import counted


def describe_result(result: dict, cleaned: bool) -> None:
    """Prints the tasks' validation scores with their intervals, and the row of table 10 next to the paper's."""
    for name, of_task in result["tasks"].items():
        scored = _score_text(of_task["score"], of_task.get("interval"))
        print(f"{find_task(name).title:<20} {scored}, {counted(of_task['steps'], 'step')}")
    print(f"{'MT score':<20} {_score_text(result['mt_score'], result.get('mt_interval'))}")
    paper = paper_row("table10_ablations", "token per dataset")
    print(render_rows({"this run, validation": table_row(result["tasks"]), "the paper, test": paper}))
    if not cleaned:
        print(f"{NOT_CLEANED}: this run was trained without --clean; the paper's model was trained on cleaned data")
    if note := ranking_note(result["tasks"]):
        print(note)


def _score_text(score: float, interval: tuple[float, float] | None) -> str:
    """A score in percent with its interval; runs of earlier versions have no interval."""
    return f"{score:6.1%}" + (f"  ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")
