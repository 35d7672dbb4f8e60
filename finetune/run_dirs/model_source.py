"""Where a model comes from: a run, published weights, a BERT, or random weights."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.annotations.answers import ORDER, AnswerVocabulary, read_vocabulary
from finetune.annotations.reference_annotations import answer_file
from finetune.config import PRETRAINING
from finetune.data.task_data import CollatorSettings, TaskData
from finetune.heads.retrieval_head import RetrievalHead, alignment_as_retrieval
from finetune.models.task_model import TaskModel
from finetune.run_dirs.answer_vocabularies import Vocabularies, read_vocabularies, task_of_answers, training_answers
from finetune.task_types.base import TASK_TOKENS, Task
from finetune.tasks import add_task_files_of, find_task, paper_tasks
from pretrain.engine.checkpoint import MODEL, best_checkpoint, read_metadata
from pretrain.models.model_config import ModelConfig, read_model_config
from pretrain.models.precision import Precision
from pretrain.pretrained.find_weights import BERT, RUN, Weights, describe_keys, find_weights, take_weights
from pretrain.pretrained.hf_bert import MISSING_IN_BERT
from pretrain.tokenizer.tokenizer import WordPieceTokenizer, learn_tokenizer, load_bert_tokenizer
from shards.common.errors import UserError

DEFAULT_RUNS = ("runs/mt", PRETRAINING)  # runs that are tried without --init, in this order
VOCABULARY = 8000  # tokens of a tokenizer that is learned from scratch
ZERO_SHOT = "zero-shot"  # kind of pretraining weights that are evaluated without fine-tuning
NEW = ("heads.", "encoder.text_embedding.task.")  # prefixes of parameters that pretraining weights lack


@dataclass
class ModelSource:
    """Everything about a model but its tensors, which `load` reads; the first rank sends it to the other ranks.

    Attributes:
        kind: AT->ST (weights of several tasks), ST (pretraining weights), BERT, scratch, or ZERO_SHOT (pretraining
            weights without fine-tuning, see trained_source).
        weights: where to read the tensors; None from scratch.
        sizes: model configuration.
        tokenizer: the tokenizer.
        vocabularies: of a run's answer heads.
        task_tokens: task -> task token of a run.
    """

    kind: str
    weights: Weights | None
    sizes: ModelConfig
    tokenizer: WordPieceTokenizer
    vocabularies: Vocabularies = field(default_factory=dict)
    task_tokens: dict[str, int | None] = field(default_factory=dict)

    @property
    def path(self) -> str | None:
        """The path of the weights as given by the user; None from scratch."""
        return self.weights.path if self.weights else None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the weights of a run; None of other weights."""
        return read_metadata(self.weights.file)["sha256"][MODEL] if self.weights and self.weights.kind == RUN else None

    @property
    def heads(self) -> dict[str, int]:
        """The task heads of the weights, see Weights.heads."""
        return self.weights.heads if self.weights else {}

    @property
    def zero_shot(self) -> bool:
        """Whether these are pretraining weights that are evaluated without fine-tuning."""
        return self.kind == ZERO_SHOT

    @property
    def tasks(self) -> list[Task]:
        """The tasks that the weights can predict: those of the run; for published weights those with a head; for
        pretraining weights retrieval, by the alignment head."""
        if self.weights is None:
            return []
        if names := self.weights.run_config.get("tasks"):
            return [find_task(name) for name in names]
        layers = {RetrievalHead().layer_name} if self.zero_shot else set(self.weights.heads)
        return [task for task in paper_tasks().values() if task.head.layer_name in layers]

    def has_head(self, task: Task) -> bool:
        """Whether the head of a task was trained, possibly by another task that shares it."""
        return task.head.layer_name in {known.head.layer_name for known in self.tasks}

    def task_token(self, task: Task) -> int | None:
        """The task token of a task; None for a model without task tokens."""
        return self.task_tokens.get(task.name, task.token) if self.sizes.task_tokens else None

    def collator_settings(self, vocabulary: AnswerVocabulary | None, max_regions: int | None) -> CollatorSettings:
        """The settings of a task's collators. vocabulary, max_regions: see CollatorSettings."""
        return CollatorSettings(self.tokenizer, vocabulary, self.sizes.max_position_embeddings, max_regions)

    def trained_model(
        self, vocabularies: Vocabularies, precision: Precision, tasks: Sequence[Task] = ()
    ) -> tuple[TaskModel, str]:
        """The trained model for inference, on its device, and a sentence on its missing and unexpected keys.

        Args:
            vocabularies: answer head -> its answers.
            precision: dtype of the weights, and the device.
            tasks: tasks whose heads are added to those of the weights.
        """
        heads = [task.head for task in (*tasks, *self.tasks)]
        model = TaskModel(self.sizes, {head: len(answers) for head, answers in vocabularies.items()}, heads)
        sentence = describe_keys(*self.load(model))
        return model.to(precision.device, precision.weight_dtype).eval(), sentence

    def load(self, model: TaskModel) -> tuple[list[str], list[str]]:
        """Loads the weights into a new model; returns (missing keys, unexpected keys)."""
        if self.weights is None:
            return [], []
        weights, unexpected = self.weights.read()
        if self.zero_shot:
            weights = alignment_as_retrieval(weights, self.path)
        own = model.state_dict()
        unexpected += [name for name in weights if name not in own]
        may_be_new = NEW + MISSING_IN_BERT if self.weights.kind == BERT else NEW
        return take_weights(model, weights, self.path, may_be_new), unexpected


def choose_source(
    init: str | None,
    config: str | None,
    tokenizer: str | None,
    texts,
    feature_size: int,
    runs=DEFAULT_RUNS,
    flag: str = "--init",
) -> ModelSource:
    """The initial weights that --init names; without it the first existing run of `runs`, else random weights.

    Args:
        init: a run directory, weights, a BERT, "scratch", or None.
        config: model configuration, from scratch (None: tiny) or of published weights.
        tokenizer: tokenizer, from scratch (None: learned from `texts`) or of published weights.
        texts: training texts.
        feature_size: feature size of the region shards.
        runs: default run directories.
        flag: name of the flag of `init`, for messages.
    """
    if init is None:
        init = next((run for run in runs if best_checkpoint(run)), "scratch")
    if init == "scratch":
        chosen = load_bert_tokenizer(tokenizer, "--tokenizer") if tokenizer else learn_tokenizer(texts, VOCABULARY)
        sizes = read_model_config(config or "tiny").replace(
            vocab_size=len(chosen), v_feature_size=feature_size, task_tokens=TASK_TOKENS
        )
        return ModelSource("scratch", None, sizes, chosen)
    add_task_files_of(init)
    try:
        weights = find_weights(init, config)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("--") else f"{flag} {error}") from None
    sizes, run_config = weights.sizes, weights.run_config
    if not sizes.task_tokens and "tasks" not in run_config:
        sizes = sizes.replace(task_tokens=TASK_TOKENS)
    if weights.kind == BERT:
        sizes = sizes.replace(v_feature_size=feature_size)
    if sizes.v_feature_size != feature_size:
        raise UserError(
            f"{flag} {init}: was trained with feature size {sizes.v_feature_size} and the region shards have "
            f"{feature_size}; use shards of the same detector"
        )
    several = weights.heads or len(run_config.get("tasks", ())) > 1
    kind = "BERT" if weights.kind == BERT else "AT->ST" if several else "ST"
    vocabularies = read_vocabularies(init) if weights.kind == RUN else {}
    return ModelSource(
        kind, weights, sizes, weights.load_tokenizer(tokenizer), vocabularies, run_config.get("tokens", {})
    )


def random_weights_note(source: ModelSource, init: str | None, runs=DEFAULT_RUNS) -> str:
    """A note if training starts from random weights, else "". init, runs: as for choose_source."""
    if source.kind != "scratch":
        return ""
    why = f"--init {init}" if init else f"no --init given, and {' or '.join(runs)} not found"
    return f"training starts from random weights, without any pretraining: {why}"


def trained_source(run: str, config: str | None, tokenizer: str | None, feature_size: int) -> ModelSource:
    """The weights that --run names, for inference; for the arguments see choose_source.

    With pretraining weights, the model has no task tokens, as in pretraining, and ranks for retrieval by the alignment
    head.
    """
    source = choose_source(run, config, tokenizer, (), feature_size, flag="--run")
    if source.kind != "ST" or "tasks" in source.weights.run_config:
        return source
    return dataclasses.replace(source, kind=ZERO_SHOT, sizes=source.sizes.replace(task_tokens=0))


def choose_vocabulary(
    source: ModelSource,
    data: TaskData,
    file: str | None,
    log=print,
    flag: str = "--answers",
    min_answer_count: int | None = None,
) -> AnswerVocabulary:
    """The answer vocabulary of a task: of the file, of the initial run, or of the training annotations.

    Published weights with an answer head do not contain its answers. They must be given in label order, by `file` or
    as the reference implementation's file in the data folder (answers.ORDER).

    Args:
        source: the initial weights.
        data: the task's data.
        file: answer file, or None.
        log: prints messages.
        flag: name of the flag of `file`, for messages.
        min_answer_count: see `training_answers`.

    Raises:
        UserError: the answers are not known, or min_answer_count is given although they are not counted.
    """
    task, head = data.task, data.task.head.name
    head_size = source.heads.get(head)
    kept = source.vocabularies.get(head)
    if min_answer_count is not None and (file or kept is not None or head_size is not None):
        origin = f"{flag} {file}" if file else source.path
        raise UserError(
            f"--min_answer_count {min_answer_count}: cannot be used for {task.name}, whose answers are those of "
            f"{origin}; remove the flag"
        )
    if file is None and kept is not None:
        return kept
    if file is None and head_size is not None:
        shared = task_of_answers(task)
        folders = [shared.folder(data.root)] if shared else []
        file = next(filter(None, map(answer_file, [*folders, data.folder])), None)
        if file is None:
            raise UserError(
                f"{source.path}: has a head of {head_size} answers for {task.name}, but not the answers; give a file "
                f"of them in the order of training ({data.folder / ORDER[0]} in the published data)"
            )
    if file is not None:
        return vocabulary_of_head(file, source, head)
    return training_answers(task, data.root, min_answer_count, flag, log)


def vocabulary_of_head(file, source: ModelSource, head: str) -> AnswerVocabulary:
    """Reads an answer file. Raises UserError if the weights have the head with another number of answers."""
    vocabulary, head_size = read_vocabulary(file), source.heads.get(head)
    if head_size is not None and len(vocabulary) != head_size:
        raise UserError(f"{file}: has {len(vocabulary)} answers and the head of {source.path} {head_size}")
    return vocabulary
