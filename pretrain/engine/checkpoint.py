"""Checkpoints: directories with tensors in safetensors and checksums in JSON, renamed into place when complete.

checkpoints/step-00001000/model.safetensors     the weights
                          training.safetensors  the optimizer's state; absent for imported weights
                          checkpoint.json       step, scores, division of the epoch, SHA-256 of both files

No random generator states are stored: data order, masks and dropout are functions of the seed and the step.
"""

import hashlib
import math
import os
import shutil
import threading
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.data.batch_schedule import Stage
from pretrain.engine.distributed import broadcast, on_first
from pretrain.engine.optimizer import optimizer_state, restore_optimizer
from shards.common.dist_info import ALONE, Ranks
from shards.common.errors import UserError
from shards.common.files import read_json, write_json
from shards.common.untrusted_input import reading, refuse_special_file

MODEL, TRAINING, METADATA = "model.safetensors", "training.safetensors", "checkpoint.json"
COPIED = 2**20  # bytes that are copied at a time


class CheckpointMetadata(msgspec.Struct):
    """The fields of checkpoint.json that are validated, for all kinds of runs."""

    step: Annotated[int, msgspec.Meta(ge=0)]
    sha256: dict[str, str]
    selection_score: float | None = None  # the checkpoint with the highest one is the best
    score: float | None = None  # its negative, in checkpoints of version 0.1
    scores: dict[str, Any] = {}
    scaler: dict[str, float] = {}
    stages: list[Stage] = []
    taken: dict[str, int] = {}
    unused_parameters: list[str] = []
    skipped_steps: int = 0
    applied_steps: int = 1
    bad_samples: int = 0
    epochs_without_better: int = 0
    best_score: float | None = None


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread; training waits only for a copy to host memory.

    On a GPU the copy to pinned memory is queued in the current stream, before the next step. If a checkpoint cannot be
    written, older ones are kept, `failure` is set to the error, and the next call raises it.
    """

    def __init__(self, run):
        self.run, self.failure = run, None
        self._thread: threading.Thread | None = None
        self._copies: dict[str, Tensor] = {}

    def save(self, step: int, model: nn.Module, optimizer, metadata: dict, selection_score: float | None) -> None:
        """Starts writing checkpoints/step-N; all checkpoints except the newest and the best are removed.

        Waits until the previous checkpoint has been written.

        Raises:
            UserError: the previous checkpoint could not be written.
        """
        self.wait()
        tensors = {MODEL: model.state_dict(), TRAINING: optimizer_state(model, optimizer)}
        copies = {
            file: {name: self._copy(f"{file}/{name}", value) for name, value in values.items()}
            for file, values in tensors.items()
        }
        copied = torch.cuda.current_stream().record_event() if next(model.parameters()).is_cuda else None
        metadata = {"step": step, "selection_score": selection_score} | metadata
        self._thread = threading.Thread(target=self._write, args=(step, copies, metadata, copied), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the checkpoint has been written to disk.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _copy(self, name: str, value: Tensor) -> Tensor:
        value = value.detach()
        copy = self._copies.get(name)
        if copy is None:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._copies[name] = copy
        return copy.copy_(value, non_blocking=True)

    def _write(self, step: int, tensors: dict[str, dict[str, Tensor]], metadata: dict, copied) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            _save(self.run, step, tensors, metadata)
        except Exception as error:
            self.failure = error


def save_weights(run, weights: dict[str, Tensor]) -> Path:
    """Writes imported weights as the checkpoint of step 0 of a run."""
    return _save(run, 0, {MODEL: weights}, {"step": 0, "selection_score": None})


def _save(run, step: int, tensors: dict[str, dict[str, Tensor]], metadata: dict) -> Path:
    folder = Path(run) / "checkpoints"
    path = folder / f"step-{step:08d}"
    _refuse_diverged(run, step, tensors[MODEL])
    temporary = folder / f".{path.name}.{os.getpid()}.part"
    try:
        for left in folder.glob(".step-*.part"):  # incomplete checkpoints of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, tensors, metadata)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        last = newest_checkpoint(run)
        raise UserError(
            f"{path}: the checkpoint could not be written ({reason}); free disk space"
            + (f" and use --resume to continue from {last.name}" if last else "; the run has no earlier checkpoint")
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in set(checkpoints(run)) - {path, best_checkpoint(run)}:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _refuse_diverged(run, step: int, weights: dict[str, Tensor]) -> None:
    """Raises UserError for weights with NaN or infinity, which must not replace a checkpoint that can be resumed."""
    bad = next((name for name, value in weights.items() if not value.isfinite().all()), None)
    if bad is not None:
        last = newest_checkpoint(run)
        raise UserError(
            f"{run}: the weights after step {step} are not finite (NaN or infinity in {bad}) and not saved; "
            + (f"the last checkpoint is {last.name}; " if last else "")
            + "start a new run with a lower --lr or another --precision, or check the features"
        )


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], metadata: dict) -> None:
    """Writes and syncs the files of a checkpoint. tensors: file name -> parameter name -> tensor."""
    for file, values in tensors.items():
        save_file({name: value.contiguous() for name, value in values.items()}, folder / file)
    write_json(folder / METADATA, metadata | {"sha256": {file: _sha256(folder / file) for file in tensors}})
    for name in tensors:
        (folder / name).chmod(
            (folder / METADATA).stat().st_mode
        )  # safetensors creates files readable by the owner only
        _sync(folder / name)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(run) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (Path(run) / "checkpoints").glob("step-*") if (path / METADATA).exists())


def newest_checkpoint(run) -> Path | None:
    """The newest complete checkpoint; a folder of finetune.share is its own checkpoint."""
    found = checkpoints(run)
    if not found and (Path(run) / METADATA).exists():
        return Path(run)
    return found[-1] if found else None


def best_checkpoint(run) -> Path | None:
    """The checkpoint with the highest selection score, the oldest of equal ones; the newest one if none has a score."""
    scores = {path: selection_score(read_metadata(path)) for path in checkpoints(run)}
    scored = {path: score for path, score in scores.items() if score is not None}
    return max(scored, key=scored.get) if scored else newest_checkpoint(run)


def selection_score(metadata: dict) -> float | None:
    """The score by which a checkpoint is selected, higher is better; minus infinity if it is not a number."""
    score = metadata.get("selection_score")
    if score is None and metadata.get("score") is not None:
        score = -metadata["score"]
    return -math.inf if score is not None and math.isnan(score) else score


def read_metadata(path: Path) -> dict:
    """The content of checkpoint.json. A score is NaN if the validation loss was."""
    return read_json(path / METADATA, CheckpointMetadata, finite=False)


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors in one file of a checkpoint, after verifying its checksum."""
    refuse_special_file(path / name)
    with reading(path / name):
        _check_sum(path, name, _sha256(path / name))
        return load_file(path / name)


def copy_tensors(path: Path, name: str, out: BinaryIO) -> None:
    """Copies one file of a checkpoint to an open file in a single pass, and verifies its checksum at the end.

    Raises:
        UserError: the file was damaged; what was written should not be used.
    """
    refuse_special_file(path / name)
    digest = hashlib.sha256()
    with open(path / name, "rb") as file:
        while block := file.read(COPIED):
            digest.update(block)
            out.write(block)
    _check_sum(path, name, digest.hexdigest())


def _check_sum(path: Path, name: str, found: str) -> None:
    if found != read_metadata(path)["sha256"].get(name):
        raise UserError(f"{path / name}: SHA-256 differs from {METADATA}; the file was damaged or changed")


def restore(path: Path, model: nn.Module, optimizer, ranks: Ranks = ALONE) -> dict:
    """Restores model and optimizer from a checkpoint and returns the content of checkpoint.json.

    Only the first rank reads and verifies the files; it broadcasts weights and optimizer state to the other ranks
    (between GPUs if the model is on one). All ranks must have the same model.
    """

    def read() -> tuple[dict, dict[str, Tensor], dict[str, tuple[torch.Size, torch.dtype]]]:
        weights, state = read_tensors(path, MODEL), read_tensors(path, TRAINING)
        with reading(path, "it belongs to another model, or its files belong to different checkpoints"):
            model.load_state_dict(weights)
            restore_optimizer(model, optimizer, state)
        kept = optimizer_state(model, optimizer)
        numbers = {name: value.cpu() for name, value in kept.items() if value.ndim == 0}
        return read_metadata(path), numbers, {name: (v.shape, v.dtype) for name, v in kept.items() if v.ndim}

    metadata, numbers, shapes = on_first(ranks, read)
    if not ranks.first:
        device = next(model.parameters()).device
        empty = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}
        restore_optimizer(model, optimizer, numbers | empty)
    kept = optimizer_state(model, optimizer)
    broadcast([*model.state_dict().values(), *(kept[name] for name in shapes)], ranks)
    return metadata
