"""State dicts in files: safetensors, or what torch.save wrote."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from shards.errors import UserError
from shards.files import refuse_special_file
from shards.reading import reading
from shards.torch_file import load_torch_file

WRAPPERS = ("model_state_dict", "state_dict", "model")  # under which training scripts keep a state dict


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a file: safetensors, or what torch.save wrote, of which nothing but tensors is made."""
    refuse_special_file(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "it should be a whole file of tensors alone"):
        value = load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    for wrapper in WRAPPERS:
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not value or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise UserError(f"{path}: should be a state dict, names with a tensor each")
    return value
