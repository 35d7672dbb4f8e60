"""The model card of a run: what it was trained on and how, and its scores, as Markdown with metadata."""

from pathlib import Path

from finetune import config as finetuning
from finetune.run_dirs.finished_runs import PRETRAINING, Run, read_run
from finetune.tasks import find_task
from pretrain import config as pretraining
from pretrain.engine.run_dir import PATHS

PAPER = "https://arxiv.org/abs/1912.02315"
ACCURACIES = {  # validation metrics of pretraining -> what they are of
    "alignment_accuracy": "image-text alignment",
    "word_accuracy": "masked tokens",
    "region_accuracy": "masked regions",
    "contrastive_accuracy": "image retrieval in a batch",
}


def model_card(path: Path, config: dict, license: str | None) -> str:
    """The text of a model card. config: config.json of the run."""
    run = read_run(path)
    tasks = [find_task(name) for name in config.get("tasks", [])]
    metadata = ["---", *([f"license: {license}"] if license else []), "library_name: twelve-in-one"]
    metadata += [
        "tags:",
        *(f"- {tag}" for tag in ("vision-and-language", "multi-task", *(t.name for t in tasks))),
        "---",
    ]
    kind = (
        "pretrained on image-caption pairs"
        if run.kind == PRETRAINING
        else "trained on " + ", ".join(task.title for task in tasks)
    )
    lines = [
        *metadata,
        "",
        f"# Vision-and-language model, {kind}",
        "",
        f"A two-stream transformer with co-attention, trained with the method of [12-in-1]({PAPER})",
        "by the toolkit twelve-in-one.",
        "",
        "```python",
        "from finetune import Predictor",
        "",
        'predictor = Predictor("hf:OWNER/NAME")  # or a local folder',
        "```",
        "",
        *_training(run),
        *_held_out(run),
        *_scores(run),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _training(run: Run) -> list[str]:
    """The data, the initial weights, the version and the flags."""
    free = (pretraining if run.kind == PRETRAINING else finetuning).FREE_FLAGS
    paths = {name for name, value in run.flags.items() if name in PATHS and value not in PATHS[name]}
    flags = {name: value for name, value in run.flags.items() if name not in free | paths and value is not None}
    data, start, made = run.flags.get("data"), run.config.get("start"), run.config.get("made") or {}
    properties = {
        "data": Path(data).name if data else None,
        "decontaminated (Clean V&L)": ("yes" if run.cleaned else "no") if run.kind != PRETRAINING else None,
        "initial weights": start and start["kind"],
        "version": " ".join(filter(None, (made.get("version"), made.get("commit")))) or None,
        "trained on": made.get("device"),
    }
    rows = [f"| {name} | {value} |" for name, value in properties.items() if value]
    return [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
        "Flags: " + ", ".join(f"`--{name} {value}`" for name, value in flags.items()),
        "",
    ]


def _held_out(run: Run) -> list[str]:
    """The accuracies of a pretraining run on held-out pairs."""
    metrics = (run.result or {}).get("validation", {}) if run.kind == PRETRAINING else {}
    accuracies = [key for key in metrics if key.endswith("_accuracy")]
    rows = [f"| {ACCURACIES.get(key, key.removesuffix('_accuracy'))} | {metrics[key]:.1%} |" for key in accuracies]
    if not rows:
        return []
    title = f"## Accuracies on {metrics['pairs']:,} held-out pairs"
    return [title, "", "| | |", "|---|---|", *rows, ""]


def _scores(run: Run) -> list[str]:
    """The scores on validation splits and those of finetune.evaluate."""
    rows = [(name, "validation", scores) for name, scores in run.validated.items()]
    rows += [(name, split, scores) for (name, split), scores in sorted(run.evaluations.items())]
    if not rows:
        return []
    lines = ["## Scores", "", "| task | split | score | 95% interval | examples |", "|---|---|---|---|---|"]
    for name, split, scores in rows:
        low_high = scores.get("interval")
        interval = f"{low_high[0]:.1%} to {low_high[1]:.1%}" if low_high else ""
        lines.append(
            f"| {find_task(name).title} | {split} | {scores['score']:.1%} | {interval} | {scores.get('examples', '')} |"
        )
    return lines
