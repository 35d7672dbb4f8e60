"""Tensors with a shape and no content: what asks for their content fails, as it would have to wait for a GPU."""

from dataclasses import fields, is_dataclass, replace

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode


def nothing_is_asked() -> FakeTensorMode:
    """A block in which every tensor that is made has no content; weights and the like may be real ones."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_content(value, mode: FakeTensorMode):
    """A tensor, or a dataclass with such in it, as it is but for its content."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if is_dataclass(value):
        return replace(
            value, **{field.name: without_content(getattr(value, field.name), mode) for field in fields(value)}
        )
    return value
