"""Checkpoints: a folder that is renamed into place when it is whole, tensors in safetensors, checksums in JSON.

checkpoints/step-00001000/model.safetensors     the weights
                          training.safetensors  the optimiser's moments and the random generators
                          checkpoint.json       step, scores, SHA-256 of both files
"""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shards.errors import UserError
from shards.files import read_json, write_json

MODEL, TRAINING, FACTS = "model.safetensors", "training.safetensors", "checkpoint.json"


def save_checkpoint(run, step: int, model: nn.Module, optimizer, facts: dict, score: float | None) -> Path:
    """Writes checkpoints/step-N of a run and removes all but the newest and the best (lowest score)."""
    folder = Path(run) / "checkpoints"
    path = folder / f"step-{step:08d}"
    temporary = folder / f".{path.name}.{os.getpid()}.part"
    try:
        temporary.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary / MODEL)
        save_file(_training_state(model, optimizer), temporary / TRAINING)
        sums = {name: _sha256(temporary / name) for name in (MODEL, TRAINING)}
        write_json(temporary / FACTS, {"step": step, "score": score, "sha256": sums} | facts)
        for name in (MODEL, TRAINING):
            (temporary / name).chmod((temporary / FACTS).stat().st_mode)  # safetensors lets the owner alone read
            _sync(temporary / name)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in set(checkpoints(run)) - {path, best_checkpoint(run)}:
        shutil.rmtree(old, ignore_errors=True)
    return path


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
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (Path(run) / "checkpoints").glob("step-*") if (path / FACTS).exists())


def newest_checkpoint(run) -> Path | None:
    found = checkpoints(run)
    return found[-1] if found else None


def best_checkpoint(run) -> Path | None:
    """The checkpoint with the lowest score; the newest where none has a score."""
    scored = [
        (facts["score"], path) for path in checkpoints(run) if (facts := read_json(path / FACTS))["score"] is not None
    ]
    return min(scored)[1] if scored else newest_checkpoint(run)


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one of a checkpoint's files, after its checksum."""
    expected = read_json(path / FACTS).get("sha256", {}).get(name)
    try:
        if _sha256(path / name) != expected:
            raise UserError(f"{path / name}: its SHA-256 is not the one in {FACTS}; the file was damaged or changed")
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / name}: cannot be read ({error})") from None


def restore(path: Path, model: nn.Module, optimizer) -> dict:
    """Brings model, optimiser and random generators back to a checkpoint; returns its facts."""
    model.load_state_dict(read_tensors(path, MODEL))
    state = read_tensors(path, TRAINING)
    facts = read_json(path / FACTS)
    for name, parameter in model.named_parameters():
        if f"moment1.{name}" in state:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(facts["optimizer_steps"]), device=parameter.device),
                "exp_avg": state[f"moment1.{name}"].to(parameter.device),
                "exp_avg_sq": state[f"moment2.{name}"].to(parameter.device),
            }
    torch.set_rng_state(state["random.cpu"])
    if "random.cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
    return facts


def _training_state(model: nn.Module, optimizer) -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state[f"moment1.{name}"] = optimizer.state[parameter]["exp_avg"].contiguous()
            state[f"moment2.{name}"] = optimizer.state[parameter]["exp_avg_sq"].contiguous()
    return state
