"""Weights that a model may begin with: a run's, a published state dict, or a BERT's."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.checkpoint import MODEL, best_checkpoint, read_tensors
from pretrain.config import ModelConfig, model_config_from, read_model_config
from pretrain.model import TwoStream
from pretrain.published import from_published
from pretrain.run_folder import CONFIG, existing_runs, read_config
from pretrain.tokenizer import WordPieces, bert_pieces, load_pieces
from shards.errors import UserError
from shards.files import is_stray, read_json
from shards.reading import reading
from shards.tensor_files import read_state_dict

RUN, PUBLISHED, BERT = "run", "published", "bert"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar")
BERT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER = "bert-base-uncased"  # of the published weights


@dataclass(frozen=True)
class Weights:
    """Where weights are, and the sizes of their model.

    path: as it was given; kind: RUN, PUBLISHED or BERT; file: the state dict, of a run its checkpoint; facts: what a
    run's config.json says; heads: of tasks, name -> how many scores they give, of published weights and of a run that
    was made of these.
    """

    path: str
    kind: str
    file: Path
    sizes: ModelConfig
    facts: dict
    heads: dict[str, int]

    def read(self) -> tuple[dict[str, Tensor], list[str]]:
        """The weights under our names, and the names in the file that have no place here."""
        if self.kind == RUN:
            return read_tensors(self.file, MODEL), []
        return read_published(self.file)

    @property
    def tokenizer(self) -> str:
        """The directory or the name of their tokenizer: a run's own, what lies beside the weights, or BERT's."""
        if self.kind == RUN:
            return self.path
        return str(self.file.parent) if self.has_tokenizer else TOKENIZER

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer lies beside the weights, as that of a run does."""
        beside = (self.file.with_name(name) for name in ("tokenizer.json", "vocab.txt"))
        return self.kind == RUN or any(path.exists() for path in beside)

    def pieces(self, tokenizer: str | None = None) -> WordPieces:
        """The word pieces: a run's own; else those of `tokenizer`, or what lies beside the weights, or BERT's."""
        if self.kind == RUN:
            if tokenizer:
                raise UserError(f"--tokenizer {tokenizer}: {self.path} is a run, which has its own")
            pieces = load_pieces(self.path)
            if len(pieces) > self.sizes.vocab_size:
                raise UserError(
                    f"{self.path}/tokenizer.json: has {len(pieces)} word pieces and the run's model "
                    f"{self.sizes.vocab_size}; it is not the tokenizer of this run"
                )
            return pieces
        tokenizer = tokenizer or self.tokenizer
        pieces = bert_pieces(tokenizer, "--tokenizer")
        if len(pieces) != self.sizes.vocab_size:
            raise UserError(
                f"--tokenizer {tokenizer}: has {len(pieces)} word pieces and {self.file} {self.sizes.vocab_size}; give "
                f"the tokenizer that the weights were trained with ({TOKENIZER} with the published ones)"
            )
        return pieces


def find_weights(path: str, config: str | None = None) -> Weights:
    """What kind of weights a path has.

    path: a run's directory, a published state dict (or a folder with one), or a directory of a Hugging Face BERT;
    config: the JSON file of a state dict's sizes, where it does not lie beside it, or base or tiny.
    """
    folder = Path(path)
    checkpoint = best_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is not None:
        if config:
            raise UserError(f"--config {config}: {path} is a run, which has its own sizes")
        facts = read_config(folder)
        sizes = model_config_from(facts.get("model"), f"{path}/{CONFIG}")
        return Weights(path, RUN, checkpoint, sizes, facts, facts.get("heads", {}))
    if folder.is_dir():
        file, kind = _in_folder(folder)
    elif folder.is_file():
        file, kind = folder, PUBLISHED
    else:
        mend = "it should be a run, published weights, or a BERT"
        raise UserError(f"{path}: no such file or directory; {mend}{existing_runs(path)}")
    weights, _ = read_published(file)
    sizes = _sizes(file, config) if kind == PUBLISHED else read_model_config(config or "base")
    sizes = _widths(sizes, weights, file)
    with torch.device("meta"):  # without memory: the sizes may be anything
        own = nn.ModuleDict({"encoder": TwoStream(sizes)}).state_dict()
    check_shapes(own, weights, str(file))
    return Weights(path, kind, file, sizes, {}, _heads(weights))


def read_published(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """from_published of a state dict's file; weights whose shapes no model has are a UserError."""
    weights = read_state_dict(file)
    with reading(file, "it should be a state dict of the published model or of BERT"):
        return from_published(weights)


def _heads(weights: dict[str, Tensor]) -> dict[str, int]:
    """The heads of tasks among weights, and how many scores each gives: as many as its last bias has numbers."""
    names = (name.split(".")[1:] for name in weights if name.startswith("heads.") and name.endswith(".bias"))
    last = {head: ".".join(["heads", head, *rest]) for head, *rest in names if rest[0] in ("decoder", "bias")}
    return {head: len(weights[name]) for head, name in last.items()}


def _in_folder(folder: Path) -> tuple[Path, str]:
    """The state dict in a directory that is not a run's, and its kind."""
    config = folder / "config.json"
    described = read_json(config) if config.exists() else None
    if isinstance(described, dict) and described.get("model_type") == "bert":
        file = next((folder / name for name in BERT_FILES if (folder / name).exists()), None)
        if file is None:
            raise UserError(f"{folder}: has neither {' nor '.join(BERT_FILES)}")
        return file, BERT
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not is_stray(path.name))
    if len(files) == 1:
        return files[0], PUBLISHED
    found = f"{len(files)} files of weights, name one of them" if files else "no whole checkpoint and no weights"
    raise UserError(f"{folder}: holds {found}")


def _sizes(file: Path, config: str | None) -> ModelConfig:
    """The sizes that belong to a state dict: as named, in the JSON file beside it, or as published."""
    if config:
        return read_model_config(config)
    beside = [path for path in sorted(file.parent.glob("*.json")) if _is_model_config(path, file)]
    named = [path for path in beside if path.stem in (file.stem, "config")]
    if len(named or beside) > 1:
        names = ", ".join(path.name for path in named or beside)
        raise UserError(f"{file}: {names} lie beside it; --config should say which has its sizes")
    return read_model_config(str((named or beside)[0])) if beside else read_model_config("base")


def _is_model_config(path: Path, file: Path) -> bool:
    """Whether a JSON file beside a state dict has sizes; one of the same name has to be readable."""
    try:
        value = read_json(path)
    except UserError:
        if path.stem == file.stem:
            raise
        return False
    return isinstance(value, dict) and "bi_hidden_size" in value


def _widths(sizes: ModelConfig, weights: dict[str, Tensor], file: Path) -> ModelConfig:
    """The sizes with those that data decide taken from the weights themselves."""
    lengths = {
        "vocab_size": "encoder.text_embedding.word.weight",
        "task_tokens": "encoder.text_embedding.task.weight",
        "v_target_size": "regions.decoder.bias",
    }
    if lengths["vocab_size"] not in weights:
        raise UserError(f"{file}: has no word embeddings; it should be a state dict of the published model or of BERT")
    feature, tables = "encoder.image_embedding.feature.weight", (lengths["vocab_size"], lengths["task_tokens"])
    for name, value in weights.items():
        if not value.ndim or (name in (feature, *tables) and value.ndim != 2):
            raise UserError(f"{file}: {name} has the shape {tuple(value.shape)}; is it a state dict of this model?")
    found = {size: len(weights[name]) for size, name in lengths.items() if name in weights}
    if feature in weights:
        found["v_feature_size"] = weights[feature].shape[1]
    return sizes.replace(**found)


def check_shapes(own: dict[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    """Refuses weights whose shapes are not those of a model's. own: the model's state dict."""
    for name, value in weights.items():
        if name in own and own[name].shape != value.shape:
            raise UserError(
                f"{where}: {name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here; the weights are "
                "of another configuration, of other features, or of another vocabulary"
            )


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Refuses weights with NaN or infinity in them."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{where}: has NaN or infinite numbers in {listed(bad)}; the file is damaged, fetch it again")


def take_weights(model: nn.Module, weights: dict[str, Tensor], where: str, may_be_new: tuple[str, ...]) -> list[str]:
    """Copies weights into a model; returns the names of the model's that were not among them.

    may_be_new: beginnings of the names that may be missing. Any other that is, and sizes that do not fit, are a
    UserError.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    check_shapes(own, weights, where)
    check_finite({name: value for name, value in weights.items() if name in own}, where)
    lacking = [name for name in missing if not name.startswith(may_be_new)]
    if lacking:
        raise UserError(f"{where}: has no weights for {listed(lacking)}; is its configuration another one?")
    model.load_state_dict(own | {name: value for name, value in weights.items() if name in own})
    return missing


def describe(missing: list[str], left_over: list[str]) -> str:
    """What weights lack and what they have too many, in words; nothing where all have their place."""
    lacks = f"new, drawn at random: {listed(missing)}" if missing else ""
    return "; ".join(filter(None, (lacks, f"no place for: {listed(left_over)}" if left_over else "")))


def listed(names: list[str]) -> str:
    """Names for a sentence, those of one layer or head as one, with how many there are."""
    counts: dict[str, int] = {}
    for name in names:
        place = _place(name)
        counts[place] = counts.get(place, 0) + 1
    return ", ".join(f"{place} ({count})" for place, count in counts.items())


def _place(name: str) -> str:
    """The part of a model that a name belongs to: a layer, a head, or an embedding."""
    *parts, _ = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: number + 1] if number is not None else parts[: 3 if parts[0] == "encoder" else 2])
