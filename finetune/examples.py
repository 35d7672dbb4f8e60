"""python -m finetune.examples --run RUN --task T: a page of correct and wrong predictions (figures 8 and 9)."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.config import EvaluateConfig, WeightsFlags, check_answer_files
from finetune.inference.judged_examples import RIGHT, choose, judge, load_examples
from finetune.inference.model_loader import ModelLoader
from finetune.pages.example_page import attention_of, card_of, write_examples
from finetune.run_dirs.init_weights import read_tasks
from finetune.run_dirs.run_data_folder import choose_data, warn_of_other_data
from finetune.tasks import add_task_files_of, choose_tasks
from shards.common.cli import command, flag
from shards.common.files import whole_file
from shards.common.folder_lock import locked_folder


@dataclass(kw_only=True)
class ExamplesConfig(WeightsFlags):
    """Flags of finetune.examples."""

    task: str | None = flag(None, "comma-separated tasks or groups", unset="all tasks of the run")
    split: str | None = flag(None, "split to predict", unset="each task's validation split")
    examples: int = flag(1000, "number of examples that are predicted, the first of the split", low=1)
    count: int = flag(20, "number of wrong predictions per task, the most confident ones, and of correct ones", low=1)
    attention: bool = flag(True, "write a page of attention maps for every example, in a folder next to the page")
    out: str = flag("examples.html", "output file for the page", written=True)
    batch_size: int = flag(64, "examples per batch", low=1)


def run(config: ExamplesConfig) -> None:
    warn_of_other_data(config.run, config.data)
    config = replace(config, data=choose_data(config.run, config.data))
    out = Path(config.out)
    folder = f"{out.stem}-attention"
    lock = locked_folder(out.parent / folder, "finetune.examples") if config.attention else contextlib.nullcontext()
    with lock:
        _run(config, out, folder)


def _run(config: ExamplesConfig, out: Path, folder: str) -> None:
    """Writes the page, and the pages of attention maps to `folder`, a name relative to the page."""
    add_task_files_of(config.run)
    tasks = choose_tasks(config.task, "--task") if config.task else read_tasks(config.run)
    check_answer_files(config, tasks)
    loader, cards, summary = ModelLoader(EvaluateConfig(**config.of_weights)), [], []
    for task in tasks:
        split = config.split or task.splits[1]
        start, work, collator = load_examples(loader, task, split, config.examples)
        scored = judge(work, collator, config.batch_size)
        right = sum(one.value > RIGHT for one in scored)
        summary.append(f"{task.title}: {right} of {len(scored)} correct")
        print(summary[-1], flush=True)
        for one in choose(scored, config.count):
            page = f"{folder}/{task.name}-{one.number}.html" if config.attention else None
            cards.append(card_of(task, collator, one, page))
            if page:
                with whole_file(out.parent / page, "w", encoding="utf-8") as file:
                    file.write(attention_of(config.run, start, work, collator, one))
    cards.sort(key=lambda card: (card.right, -card.prediction.confidence[0]))
    write_examples(out, f"Correct and wrong predictions of {config.run}", "; ".join(summary), cards)
    print(f"page: {out}" + (f", with attention maps in {folder}" if config.attention else ""))


EXAMPLES = ("python -m finetune.examples --run runs/mt --task refcoco",)


if __name__ == "__main__":
    command(
        ExamplesConfig,
        run,
        "finetune.examples",
        "A page of correct and wrong predictions, the most confident mistakes first.",
        examples=EXAMPLES,
    )
