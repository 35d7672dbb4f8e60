"""Initial weights of a model: from a run, a published state dict, or a BERT."""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from pretrain.engine.checkpoint import METADATA, MODEL, best_checkpoint, read_tensors
from pretrain.engine.run_dir import CONFIG, existing_runs, read_config
from pretrain.models.model_config import ModelConfig, model_config_from, read_model_config
from pretrain.models.vilbert import TwoStream
from pretrain.pretrained.state_dict_mapping import from_published
from pretrain.tokenizer.tokenizer import WordPieceTokenizer, load_bert_tokenizer, load_tokenizer
from shards.common.errors import UserError
from shards.common.files import is_stray, read_json
from shards.common.untrusted_input import reading, shown
from shards.parsing.tensor_files import read_state_dict

RUN, PUBLISHED, BERT = "run", "published", "bert"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar")
BERT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER = "bert-base-uncased"  # the tokenizer of the published weights


@dataclass(frozen=True)
class Weights:
    """Location of weights, and their model configuration.

    Attributes:
        path: as given by the user.
        kind: RUN, PUBLISHED or BERT.
        file: the state dict, or the checkpoint directory of a run.
        run_config: config.json of a run.
        heads: task heads of published weights, or of a run converted from them: name -> number of outputs.
    """

    path: str
    kind: str
    file: Path
    sizes: ModelConfig
    run_config: dict
    heads: dict[str, int]

    def read(self) -> tuple[dict[str, Tensor], list[str]]:
        """Reads the weights; returns tensors by our names, and the unexpected keys of the file."""
        if self.kind == RUN:
            return read_tensors(self.file, MODEL), []
        return read_published(self.file)

    @property
    def tokenizer(self) -> str:
        """Directory or hub name of the tokenizer: the run's, the one next to the weights, or bert-base-uncased."""
        if self.kind == RUN:
            return self.path
        return str(self.file.parent) if self.has_tokenizer else TOKENIZER

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer next to the weights, as in a run."""
        files = (self.file.with_name(name) for name in ("tokenizer.json", "vocab.txt"))
        return self.kind == RUN or any(path.exists() for path in files)

    def load_tokenizer(self, tokenizer: str | None = None) -> WordPieceTokenizer:
        """Loads the tokenizer of a run; otherwise `tokenizer`, or `self.tokenizer` if it is None."""
        if self.kind == RUN:
            if tokenizer:
                raise UserError(f"--tokenizer {tokenizer}: {self.path} is a run with its own tokenizer; omit the flag")
            loaded = load_tokenizer(self.path)
            if len(loaded) > self.sizes.vocab_size:
                raise UserError(
                    f"{self.path}/tokenizer.json: has {len(loaded)} tokens, but the vocab_size of the model is "
                    f"{self.sizes.vocab_size}; it is not the tokenizer of this run"
                )
            return loaded
        tokenizer = tokenizer or self.tokenizer
        loaded = load_bert_tokenizer(tokenizer, "--tokenizer")
        if len(loaded) != self.sizes.vocab_size:
            raise UserError(
                f"--tokenizer {tokenizer}: has {len(loaded)} tokens, but {self.file} {self.sizes.vocab_size}; use the "
                f"tokenizer that the weights were trained with ({TOKENIZER} for the published weights)"
            )
        return loaded


class _BertConfig(msgspec.Struct):
    """The fields of a BERT's config.json that are read."""

    num_attention_heads: int | None = None
    hidden_act: str = "gelu"


def find_weights(path: str, config: str | None = None) -> Weights:
    """Determines the kind, files and model configuration of weights.

    Args:
        path: a run directory, a published state dict (or a folder with one), or the directory of a Hugging Face BERT.
        config: model configuration of a published state dict (a JSON file, base or tiny), if it is not next to it.
    """
    folder = Path(path)
    _refuse_checkpoint(folder)
    checkpoint = best_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is not None:
        if config:
            raise UserError(f"--config {config}: {path} is a run with its own configuration; omit the flag")
        run_config = read_config(folder)
        sizes = model_config_from(run_config.get("model"), f"{path}/{CONFIG}")
        return Weights(path, RUN, checkpoint, sizes, run_config, run_config.get("heads", {}))
    if folder.is_dir():
        file, kind = _in_folder(folder)
    elif folder.is_file():
        file, kind = folder, PUBLISHED
    else:
        expected = "expected a run, published weights, or a BERT"
        raise UserError(f"{path}: no such file or directory; {expected}{existing_runs(path)}")
    weights, _ = read_published(file)
    sizes = _sizes(file, config) if kind == PUBLISHED else read_model_config(config or "base")
    sizes = _widths(sizes, weights, file)
    with torch.device("meta"):  # allocates no memory, whatever the sizes are
        own = nn.ModuleDict({"encoder": TwoStream(sizes)}).state_dict()
    check_shapes(own, weights, str(file))
    if kind == BERT:
        check_bert_config(file.parent, sizes)
    return Weights(path, kind, file, sizes, {}, _heads(weights))


def check_bert_config(folder: Path, sizes: ModelConfig) -> None:
    """Checks what the shapes of a BERT's weights do not show.

    Args:
        folder: the directory of the BERT.
        sizes: configuration of the model that gets its weights.

    Raises:
        UserError: it has another number of attention heads, or another activation function.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    bert = read_json(path, _BertConfig)
    heads, activation = bert.get("num_attention_heads"), bert.get("hidden_act", "gelu")
    if heads not in (None, sizes.num_attention_heads):
        raise UserError(
            f"{path}: num_attention_heads is {heads}, and {sizes.num_attention_heads} in the model configuration; with "
            "other heads the weights compute something else, so change the configuration"
        )
    if activation != "gelu":
        raise UserError(f"{path}: hidden_act is {shown(activation)}; only BERTs with gelu are supported")


def read_published(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Reads a state dict of the reference implementation or of a BERT; see from_published."""
    weights = read_state_dict(file)
    with reading(file, "expected a state dict of the reference implementation or of BERT"):
        return from_published(weights)


def _heads(weights: dict[str, Tensor]) -> dict[str, int]:
    """The task heads in a state dict: name -> number of outputs, the size of the last bias."""
    names = (name.split(".")[1:] for name in weights if name.startswith("heads.") and name.endswith(".bias"))
    last = {head: ".".join(["heads", head, *rest]) for head, *rest in names if rest[0] in ("decoder", "bias")}
    return {head: len(weights[name]) for head, name in last.items()}


def check_has_weights(folder: Path) -> None:
    """Raises UserError for a directory that is neither a run nor contains weights, without reading any."""
    _refuse_checkpoint(folder)
    if best_checkpoint(folder) is None:
        _in_folder(folder)


def _refuse_checkpoint(folder: Path) -> None:
    """Raises UserError for a checkpoint of a run, which lacks the run's configuration and tokenizer."""
    run = Path(os.path.abspath(folder)).parent.parent
    if (folder / METADATA).exists() and not (folder / CONFIG).exists() and (run / CONFIG).exists():
        raise UserError(f"{folder}: is a checkpoint of a run and not a run; give the run, {run}")


def _in_folder(folder: Path) -> tuple[Path, str]:
    """The state dict in a directory that is not a run, and its kind."""
    config = folder / "config.json"
    described = read_json(config) if config.exists() else None
    if isinstance(described, dict) and described.get("model_type") == "bert":
        file = next((folder / name for name in BERT_FILES if (folder / name).exists()), None)
        if file is None:
            raise UserError(f"{folder}: neither {' nor '.join(BERT_FILES)} found")
        return file, BERT
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not is_stray(path.name))
    if (folder / "dataset.json").exists():  # region shards, whose tars may be called as those of weights
        files = []
    if len(files) == 1:
        return files[0], PUBLISHED
    if files:
        raise UserError(f"{folder}: contains {len(files)} files of weights; give the path of one")
    raise UserError(
        f"{folder}: contains no complete checkpoint and no weights; it should be a run or weights"
        f"{existing_runs(folder)}"
    )


def _sizes(file: Path, config: str | None) -> ModelConfig:
    """The configuration of a state dict: the given one, that in a JSON file next to it, or base."""
    if config:
        return read_model_config(config)
    found = [path for path in sorted(file.parent.glob("*.json")) if _is_model_config(path, file)]
    named = [path for path in found if path.stem in (file.stem, "config")]
    if len(named or found) > 1:
        names = ", ".join(path.name for path in named or found)
        raise UserError(f"{file}: several model configurations next to it: {names}; select one with --config")
    return read_model_config(str((named or found)[0])) if found else read_model_config("base")


def _is_model_config(path: Path, file: Path) -> bool:
    """Whether a JSON file next to a state dict is a model configuration; one of the same name must be readable."""
    try:
        value = read_json(path)
    except UserError:
        if path.stem == file.stem:
            raise
        return False
    return isinstance(value, dict) and "bi_hidden_size" in value


def _widths(sizes: ModelConfig, weights: dict[str, Tensor], file: Path) -> ModelConfig:
    """The configuration with the sizes that depend on the data taken from the weights."""
    lengths = {
        "vocab_size": "encoder.text_embedding.word.weight",
        "task_tokens": "encoder.text_embedding.task.weight",
        "v_target_size": "regions.decoder.bias",
    }
    if lengths["vocab_size"] not in weights:
        raise UserError(
            f"{file}: no word embeddings found; expected a state dict of the reference implementation or of BERT"
        )
    feature, tables = "encoder.image_embedding.feature.weight", (lengths["vocab_size"], lengths["task_tokens"])
    for name, value in weights.items():
        if not value.ndim or (name in (feature, *tables) and value.ndim != 2):
            raise UserError(f"{file}: {name} has the shape {tuple(value.shape)}; expected a state dict of this model")
    found = {size: len(weights[name]) for size, name in lengths.items() if name in weights}
    if feature in weights:
        found["v_feature_size"] = weights[feature].shape[1]
    return sizes.replace(**found)


def check_shapes(own: dict[str, Tensor], weights: dict[str, Tensor], where: str) -> None:
    """Raises UserError if shapes differ from those of a model. own: the model's state dict."""
    for name, value in weights.items():
        if name in own and own[name].shape != value.shape:
            raise UserError(
                f"{where}: {name} has the shape {tuple(value.shape)}, but {tuple(own[name].shape)} in the model; "
                "the configurations, features or vocabularies differ"
            )


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raises UserError if weights contain NaN or infinity."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{where}: NaN or infinity in {listed(bad)}; the file is damaged, download it again")


def take_weights(model: nn.Module, weights: dict[str, Tensor], where: str, may_be_new: tuple[str, ...]) -> list[str]:
    """Copies weights into a model and returns the missing keys.

    Args:
        may_be_new: prefixes of the keys that may be missing.

    Raises:
        UserError: other keys are missing, shapes differ, or weights are not finite.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    check_shapes(own, weights, where)
    check_finite({name: value for name, value in weights.items() if name in own}, where)
    lacking = [name for name in missing if not name.startswith(may_be_new)]
    if lacking:
        raise UserError(f"{where}: missing keys: {listed(lacking)}; does the configuration match the weights?")
    model.load_state_dict(own | {name: value for name, value in weights.items() if name in own})
    return missing


def describe_keys(missing: list[str], unexpected: list[str]) -> str:
    """Formats missing and unexpected keys; empty if there are none."""
    lacks = f"missing keys, initialised randomly: {listed(missing)}" if missing else ""
    return "; ".join(filter(None, (lacks, f"unexpected keys, ignored: {listed(unexpected)}" if unexpected else "")))


def listed(names: list[str]) -> str:
    """Formats parameter names, grouped by layer, head or embedding, with the number in each group."""
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
