"""What fine-tuning starts from: a multi-task run, a pretraining run, or nothing."""

from dataclasses import dataclass
from pathlib import Path

from finetune.answers import AnswerVocabulary, read_vocabulary
from finetune.heads import TaskModel
from finetune.task import Task
from pretrain.checkpoint import MODEL, best_checkpoint, read_tensors
from pretrain.config import ModelConfig, model_config_from, read_model_config
from pretrain.tokenizer import WordPieces, learn_pieces, load_pieces
from shards.errors import UserError
from shards.files import read_json

TASK_TOKENS = 20
PRETRAINING = "runs/pretrain"
DEFAULTS = ("runs/mt", PRETRAINING)  # what is looked for where no --init is given
VOCABULARY = 8000  # word pieces that are learned where there is no run


@dataclass
class Start:
    """Where to begin, without the weights: it is handed from the first rank to the others, and each reads for itself.

    kind: AT->ST (from a multi-task run), ST (from pretraining), or scratch; run: None from scratch.

    vocabularies: of the run's answer heads; tokens: the task tokens that the run gave its tasks.
    """

    kind: str
    run: str | None
    sizes: ModelConfig
    pieces: WordPieces
    checkpoint: Path | None
    vocabularies: dict[str, AnswerVocabulary]
    tokens: dict[str, int]

    def token(self, task: Task) -> int | None:
        """The token of a task; None where the model has none."""
        return self.tokens.get(task.name, task.token) if self.sizes.task_tokens else None

    def load(self, model: TaskModel) -> None:
        """Gives a new model the weights that there are; task tokens and heads that the run lacks stay new."""
        if self.checkpoint is None:
            return
        wanted = model.state_dict()
        found = {name: value for name, value in read_tensors(self.checkpoint, MODEL).items() if name in wanted}
        for name, value in found.items():
            if value.shape != wanted[name].shape:
                raise UserError(
                    f"--init {self.run}: {name} is {tuple(value.shape)} there and {tuple(wanted[name].shape)} here; "
                    "the run was trained on other features or another vocabulary"
                )
        model.load_state_dict(wanted | found)


def choose_start(init: str | None, config: str, texts, feature_size: int, runs=DEFAULTS) -> Start:
    """The start that --init names (a run's directory, or `scratch`), else the first of `runs` that there is.

    config: sizes of a model from scratch, whose word pieces are learned from texts.
    """
    if init is None:
        init = next((run for run in runs if best_checkpoint(run)), "scratch")
    if init == "scratch":
        pieces = learn_pieces(texts, VOCABULARY)
        sizes = read_model_config(config).replace(
            vocab_size=len(pieces), v_feature_size=feature_size, task_tokens=TASK_TOKENS
        )
        return Start("scratch", None, sizes, pieces, None, {}, {})
    checkpoint = best_checkpoint(init)
    if checkpoint is None:
        raise UserError(f"--init {init}: holds no whole checkpoint; give a run's directory, or scratch")
    stored = read_json(Path(init) / "config.json")
    sizes = model_config_from(stored.get("model"), f"{init}/config.json")
    if "tasks" not in stored:
        sizes = sizes.replace(task_tokens=TASK_TOKENS)
    if sizes.v_feature_size != feature_size:
        raise UserError(
            f"--init {init}: was trained on features {sizes.v_feature_size} wide and the regions here have "
            f"{feature_size}; use shards of the same detector"
        )
    kind = "AT->ST" if len(stored.get("tasks", ())) > 1 else "ST"
    vocabularies, tokens = read_vocabularies(init), stored.get("tokens", {})
    return Start(kind, init, sizes, load_pieces(init), checkpoint, vocabularies, tokens)


def vocabulary_path(run, head: str) -> Path:
    return Path(run) / f"answers-{head}.json"


def read_vocabularies(run) -> dict[str, AnswerVocabulary]:
    """Answer head -> vocabulary, as a run keeps them."""
    return {
        path.stem.removeprefix("answers-"): read_vocabulary(path) for path in sorted(Path(run).glob("answers-*.json"))
    }
