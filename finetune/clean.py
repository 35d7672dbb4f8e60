"""python -m finetune.clean --data DIR: decontamination (Clean V&L).

Finds images that are in the test set of any task and lists, for every task, the training and validation images to
remove; with --corpus, the test images in other training data.
"""

import dataclasses
from pathlib import Path

from finetune.config import CleanConfig, add_task_files
from finetune.decontamination.corpus_files import notes_of_search
from finetune.decontamination.corpus_search import (
    OUT,
    check_corpus_flags,
    check_searched,
    make_fingerprint,
    search_corpus,
)
from finetune.decontamination.manifest import not_compared, read_manifest
from finetune.decontamination.remove_images import clean
from finetune.decontamination.verify import find_leaks
from finetune.tasks import add_task_files_of
from shards.common.cli import command
from shards.common.dist_info import launched
from shards.common.errors import UserError
from shards.world import DEFAULT_WORLD, check_data_folder


def run(config: CleanConfig) -> int:
    check_corpus_flags(config)
    if not config.corpus and not config.fingerprint:
        config = dataclasses.replace(config, data=config.data or DEFAULT_WORLD)
        check_data_folder(config.data)
    for task in add_task_files(config.task_file):
        if config.data and not (folder := task.folder(config.data)).is_dir():
            raise UserError(f"--task_file: {folder} not found; it should contain {', '.join(task.files)}")
    if config.fingerprint:
        print(make_fingerprint(config))
        return 0
    if config.corpus and config.check:
        leaks = check_searched(config)
        print("\n".join(leaks or [NO_LEAK, *notes_of_search(Path(config.out or OUT))]))
        return 1 if leaks else 0
    if config.corpus:
        ranks = launched()
        ranks.log(search_corpus(config, ranks))
        return 0
    out = config.out or Path(config.data) / "clean"
    if config.check:
        add_task_files_of(out)
        leaks = find_leaks(config.data, out)
        print("\n".join(leaks or [NO_LEAK, *not_compared(read_manifest(out).get("without_picture", {}))]))
        return 1 if leaks else 0
    print(clean(config))
    return 0


NO_LEAK = "no test image remains, as far as images could be compared"
EXAMPLES = (
    "python -m finetune.clean --data data/real",
    "python -m finetune.clean --data data/real --images images/",
    "python -m finetune.clean --data data/real --task_file mine.toml",
    "python -m finetune.clean --corpus 'my/{000..331}.tar' --data data/real --images images/ --out runs/clean",
    "python -m finetune.clean --fingerprint mine.safetensors --test_images my_test/ --test_name mine",
    "python -m finetune.clean --corpus 'my/*.tar' --known mine.safetensors",
)


if __name__ == "__main__":
    summary = "Decontamination: finds test images of any task in the training and validation data of all tasks."
    command(CleanConfig, run, "finetune.clean", summary, examples=EXAMPLES)
