"""State dicts in files of safetensors or torch.save."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from shards.common.errors import UserError
from shards.common.untrusted_input import reading, refuse_special_file
from shards.parsing.torch_save import load_torch_file

WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys of training scripts for a state dict


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from safetensors or a file of torch.save, of which only tensors are unpickled."""
    refuse_special_file(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "expected a complete file with nothing but tensors"):
        value = load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise UserError(f"{path}: should be a state dict, a dictionary of tensors")
    return value
