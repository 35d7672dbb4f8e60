"""Answer vocabularies: of the training annotations, and those of a run directory."""

import dataclasses
from functools import partial
from pathlib import Path

from finetune.annotations.answers import AnswerVocabulary, NoAnswers, read_vocabulary
from finetune.prepared.prepare_data import ANSWERS, Wanted, open_prepared
from finetune.task_types.base import Task
from finetune.tasks import find_task
from shards.common.errors import UserError

Vocabularies = dict[str, AnswerVocabulary]  # by answer head


def vocabulary_path(run, head: str) -> Path:
    return Path(run) / f"answers-{head}.json"


def read_vocabularies(run) -> Vocabularies:
    """Answer head -> vocabulary, from the files in a run directory."""
    return {
        path.stem.removeprefix("answers-"): read_vocabulary(path) for path in sorted(Path(run).glob("answers-*.json"))
    }


def task_of_answers(task: Task) -> Task | None:
    """The other task whose vocabulary a task shares, or None."""
    name = getattr(task, "answers_of", "")
    return find_task(name) if name else None


def training_answers(
    task: Task, root, min_answer_count: int | None = None, flag: str = "--answers", log=print
) -> AnswerVocabulary:
    """The answer vocabulary of the training annotations; of another task's if it is shared and in the data folder.

    Args:
        task: a task with an answer vocabulary.
        root: data folder.
        min_answer_count: minimum number of training questions with an answer; None: the task's own.
        flag: name of the flag for an answer file, for messages.
        log: prints messages.

    Raises:
        UserError: no answer is frequent enough.
    """
    try:
        return _training_answers(task, Path(root), min_answer_count, log)
    except NoAnswers as error:
        hint = f"lower --min_answer_count, or give the answers in a file ({flag})"
        raise UserError(f"{task.folder(root)}: {error}; {hint}") from None


def _training_answers(task: Task, root: Path, min_answer_count: int | None, log) -> AnswerVocabulary:
    def vocabulary_of(task: Task) -> AnswerVocabulary:
        counted = partial(open_prepared, root, Wanted(task, ANSWERS, "training"))
        wanted = task if min_answer_count is None else dataclasses.replace(task, at_least=min_answer_count)
        return wanted.vocabulary(task.folder(root), counted)

    shared = task_of_answers(task)
    if shared is None:
        return vocabulary_of(task)
    folder = shared.folder(root)
    if shared.has_answers(folder):
        vocabulary = vocabulary_of(shared)
        log(f"{task.title}: {len(vocabulary)} answers, those of {shared.title} in {folder}")
        return vocabulary
    vocabulary = vocabulary_of(task)
    log(
        f"{task.title}: {len(vocabulary)} answers of its own annotations, because {folder} has no annotations of "
        f"{shared.title}; scores are not comparable with those of models that use {shared.title}'s answers"
    )
    return vocabulary
