"""What fine-tuning starts from: a run, published weights, a BERT, or nothing."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetune.answers import ORDER, AnswerVocabulary, NoAnswers, read_vocabulary
from finetune.data import TaskData
from finetune.heads import TaskModel, alignment_as_retrieval, layer_of
from finetune.processed import answer_file
from finetune.regions import Regions
from finetune.run_data import check_exists
from finetune.task import Task
from finetune.tasks import find_task, paper_tasks
from pretrain.bert import NOT_BERTS
from pretrain.checkpoint import best_checkpoint
from pretrain.circumstances import circumstances
from pretrain.config import ModelConfig, read_model_config
from pretrain.run_folder import CONFIG, DETECTOR, absolute, clear_run, read_config, stored_form
from pretrain.tokenizer import WordPieces, bert_pieces, learn_pieces
from pretrain.weights import BERT, RUN, Weights, find_weights, take_weights
from shards.detectors import keep_detector
from shards.errors import UserError
from shards.files import write_json

TASK_TOKENS = 20
PRETRAINING = "runs/pretrain"
DEFAULTS = ("runs/mt", PRETRAINING)  # what is looked for where no --init is given
VOCABULARY = 8000  # word pieces that are learned where there is no run
ZERO_SHOT = "zero-shot"  # the kind of a start from pretraining that is evaluated without fine-tuning
NEW = ("heads.", "encoder.text_embedding.task.")  # what no pretraining gives

Vocabularies = dict[str, AnswerVocabulary]  # by answer head


@dataclass
class Start:
    """Where to begin, without the weights: it is handed from the first rank to the others, which get these later.

    kind: AT->ST (from weights of several tasks), ST (from pretraining), BERT, scratch, or ZERO_SHOT (pretraining
    weights as they are, see trained_start); weights: None from scratch.

    vocabularies: of a run's answer heads; tokens: the task tokens that a run gave its tasks.
    """

    kind: str
    weights: Weights | None
    sizes: ModelConfig
    pieces: WordPieces
    vocabularies: Vocabularies = field(default_factory=dict)
    tokens: dict[str, int | None] = field(default_factory=dict)

    @property
    def path(self) -> str | None:
        """What it starts from, as it was given."""
        return self.weights.path if self.weights else None

    @property
    def zero_shot(self) -> bool:
        """Whether these are pretraining weights that are evaluated without fine-tuning."""
        return self.kind == ZERO_SHOT

    @property
    def tasks(self) -> list[Task]:
        """The tasks that the weights were trained on, of published weights those that they have heads for, of
        pretraining weights retrieval, which their alignment head ranks for."""
        if self.weights is None:
            return []
        if names := self.weights.facts.get("tasks"):
            return [find_task(name) for name in names]
        layers = {"retrieval"} if self.zero_shot else set(self.weights.heads)
        return [task for task in paper_tasks().values() if layer_of(task.head) in layers]

    def has_head(self, task: Task) -> bool:
        """Whether a task trained the head of this one; heads may be shared."""
        return layer_of(task.head) in {layer_of(known.head) for known in self.tasks}

    def token(self, task: Task) -> int | None:
        """The token of a task; None where the model has none."""
        return self.tokens.get(task.name, task.token) if self.sizes.task_tokens else None

    def load(self, model: TaskModel) -> tuple[list[str], list[str]]:
        """Gives a new model the weights that there are; returns the names that stay new and those without a place."""
        if self.weights is None:
            return [], []
        weights, left_over = self.weights.read()
        if self.zero_shot:
            weights = alignment_as_retrieval(weights, self.path)
        own = model.state_dict()
        left_over += [name for name in weights if name not in own]
        may_be_new = NEW + NOT_BERTS if self.weights.kind == BERT else NEW
        return take_weights(model, weights, self.path, may_be_new), left_over


def choose_start(
    init: str | None,
    config: str | None,
    tokenizer: str | None,
    texts,
    feature_size: int,
    runs=DEFAULTS,
    flag: str = "--init",
) -> Start:
    """The start that --init names, `scratch` among them, else the first of `runs` that there is.

    config: the sizes of a model from scratch (tiny where it is None) or of published weights; tokenizer: the word
    pieces of either, which from scratch are learned from texts where it is None; flag: what init is called in messages.
    """
    if init is None:
        init = next((run for run in runs if best_checkpoint(run)), "scratch")
    if init == "scratch":
        pieces = bert_pieces(tokenizer, "--tokenizer") if tokenizer else learn_pieces(texts, VOCABULARY)
        sizes = read_model_config(config or "tiny").replace(
            vocab_size=len(pieces), v_feature_size=feature_size, task_tokens=TASK_TOKENS
        )
        return Start("scratch", None, sizes, pieces)
    try:
        weights = find_weights(init, config)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("--") else f"{flag} {error}") from None
    sizes, facts = weights.sizes, weights.facts
    if not sizes.task_tokens and "tasks" not in facts:
        sizes = sizes.replace(task_tokens=TASK_TOKENS)
    if weights.kind == BERT:
        sizes = sizes.replace(v_feature_size=feature_size)
    if sizes.v_feature_size != feature_size:
        raise UserError(
            f"{flag} {init}: was trained on features {sizes.v_feature_size} wide and the regions here have "
            f"{feature_size}; use shards of the same detector"
        )
    kind = "BERT" if weights.kind == BERT else "AT->ST" if weights.heads or len(facts.get("tasks", ())) > 1 else "ST"
    vocabularies = read_vocabularies(init) if weights.kind == RUN else {}
    return Start(kind, weights, sizes, weights.pieces(tokenizer), vocabularies, facts.get("tokens", {}))


def random_start_note(start: Start, init: str | None, runs=DEFAULTS) -> str:
    """A sentence where training starts from random weights, else nothing; init, runs: as choose_start takes them."""
    if start.kind != "scratch":
        return ""
    why = f"--init {init}" if init else f"there is no --init and no {' or '.join(runs)}"
    return f"training starts from random weights, without any pretraining: {why}"


def trained_start(run: str, config: str | None, tokenizer: str | None, feature_size: int) -> Start:
    """The weights that --run names, to be evaluated as they are; for the arguments see choose_start.

    Pretraining weights keep the sizes that they were trained with, so that the model has no task tokens, and rank for
    retrieval by their alignment head.
    """
    start = choose_start(run, config, tokenizer, (), feature_size, flag="--run")
    if start.kind != "ST" or "tasks" in start.weights.facts:
        return start
    return dataclasses.replace(start, kind=ZERO_SHOT, sizes=start.sizes.replace(task_tokens=0))


def choose_vocabulary(
    start: Start,
    data: TaskData,
    file: str | None,
    say=print,
    flag: str = "--answers",
    min_answer_count: int | None = None,
) -> AnswerVocabulary:
    """The answers of a task that has some to choose from: a file's, those of the run that is gone on from, or the
    training annotations'.

    Published weights with a head for them know their answers by number alone: these must be given in their order,
    as a file or, in the data, as the published code's own (answers.ORDER).

    flag: what the file is called in messages; min_answer_count: see `training_answers`.
    """
    task, head_size = data.task, start.weights.heads.get(data.task.head) if start.weights else None
    kept = start.vocabularies.get(task.head)
    if min_answer_count is not None and (file or kept is not None or head_size is not None):
        source = f"{flag} {file}" if file else start.path
        raise UserError(
            f"--min_answer_count {min_answer_count}: {task.name} has the answers of {source}, which are not counted; "
            "leave the flag out"
        )
    if file is None and kept is not None:
        return kept
    if file is None and head_size is not None:
        shared = _task_of_answers(task)
        folders = [shared.folder(data.root)] if shared else []
        file = next(filter(None, map(answer_file, [*folders, data.folder])), None)
        if file is None:
            raise UserError(
                f"{start.path}: has a head of {head_size} answers for {task.name} and not the answers; give a file of "
                f"them in the order in which it was trained ({data.folder / ORDER[0]} in the published data)"
            )
    if file is not None:
        return vocabulary_of_head(file, start, task.head)
    return training_answers(task, data.root, min_answer_count, flag, say)


def _task_of_answers(task: Task) -> Task | None:
    """The other task whose vocabulary a task shares."""
    name = getattr(task, "answers_of", "")
    return find_task(name) if name else None


def training_answers(
    task: Task, root, min_answer_count: int | None = None, flag: str = "--answers", say=print
) -> AnswerVocabulary:
    """The answers of the training annotations; those of the task that it shares them with, where these are there.

    Args:
        task: that has answers to choose from.
        root: the data folder.
        min_answer_count: training questions that have an answer of the vocabulary, at least; None: the task's own.
        flag: what gives a file of the answers instead, for messages.

    Raises:
        UserError: no answer is frequent enough.
    """
    try:
        return _training_answers(task, Path(root), min_answer_count, say)
    except NoAnswers as error:
        mend = f"lower --min_answer_count, or give the answers in a file ({flag})"
        raise UserError(f"{task.folder(root)}: {error}; {mend}") from None


def _training_answers(task: Task, root: Path, min_answer_count: int | None, say) -> AnswerVocabulary:
    shared = _task_of_answers(task)
    if min_answer_count is not None:
        task = dataclasses.replace(task, at_least=min_answer_count)
        shared = shared and dataclasses.replace(shared, at_least=min_answer_count)
    if shared is None:
        return task.vocabulary(task.folder(root))
    folder = shared.folder(root)
    if shared.has_answers(folder):
        vocabulary = shared.vocabulary(folder)
        say(f"{task.title}: {len(vocabulary)} answers, those of {shared.title} in {folder}")
        return vocabulary
    vocabulary = task.vocabulary(task.folder(root))
    say(
        f"{task.title}: {len(vocabulary)} answers, of its own annotations, because {folder} has none of "
        f"{shared.title}; scores do not compare with those of models that choose from {shared.title}'s answers"
    )
    return vocabulary


def vocabulary_of_head(file, start: Start, head: str) -> AnswerVocabulary:
    """The answers of a file, of which there are as many as the head has numbers, where the weights have one."""
    vocabulary, head_size = read_vocabulary(file), start.weights.heads.get(head) if start.weights else None
    if head_size is not None and len(vocabulary) != head_size:
        raise UserError(f"{file}: has {len(vocabulary)} answers, and the head of {start.path} has {head_size}")
    return vocabulary


def begin_run(
    run: Path,
    config,
    start: Start,
    sizes: ModelConfig,
    tasks: list[Task],
    tokens: dict,
    vocabularies: Vocabularies,
    device: torch.device,
    regions: Regions,
) -> None:
    """A run directory with what choose_start reads again, and what finetune.predict needs of the detector.

    tokens: of the tasks that have one; regions: of the images of one of the tasks.
    """
    clear_run(run)
    start.pieces.save(run)
    keep_detector(regions.dataset.folder, run / DETECTOR)
    for head, vocabulary in vocabularies.items():
        vocabulary.save(vocabulary_path(run, head))
    write_json(
        run / CONFIG,
        {
            "flags": stored_form(dataclasses.asdict(config)),
            "model": sizes.to_dict(),
            "tasks": [task.name for task in tasks],
            "tokens": tokens,
            "start": {"kind": start.kind, "run": absolute(start.path, "init")},
            "made": circumstances(device),
        },
    )


def vocabulary_path(run, head: str) -> Path:
    return Path(run) / f"answers-{head}.json"


def read_vocabularies(run) -> Vocabularies:
    """Answer head -> vocabulary, as a run keeps them."""
    return {
        path.stem.removeprefix("answers-"): read_vocabulary(path) for path in sorted(Path(run).glob("answers-*.json"))
    }


def read_tasks(run) -> list[Task]:
    """The tasks that a run trained."""
    check_exists(run)
    names = read_config(run).get("tasks", []) if (Path(run) / CONFIG).exists() else []
    if not names:
        raise UserError(f"--run {run}: does not say which tasks it knows; --task should say which")
    return [find_task(name) for name in names]
