"""State dicts in files: safetensors, or what torch.save wrote."""

import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import UserError
from shards.files import refuse_special_file

WRAPPERS = ("model_state_dict", "state_dict", "model")  # under which training scripts keep a state dict


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a file: safetensors, or what torch.save wrote, of which nothing but tensors is made."""
    refuse_special_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # torch's doubts about a pickle that it then refuses
            value = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file, or one of another kind, raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is not a whole file of tensors alone ({reason})") from None
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise UserError(f"{path}: should be a state dict, names with a tensor each")
    return value
