"""Reads state dicts of torch.save without torch's unpickler, which has had vulnerabilities to code in files.

In a zip (torch 1.6 and later) the pickle in data.pkl is read by shards.parsing.safe_pickle, and tensors are views of
the mapped file if its entries are stored uncompressed, as torch writes them; compressed entries are decompressed within
a limit. Before 1.6 a file is a sequence of pickles followed by the storages.
"""

import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shards.common.untrusted_input import check_packed
from shards.parsing.pickle_arrays import ARRAYS, Refused
from shards.parsing.safe_pickle import unpickle_at

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before torch 1.6
PROTOCOL = 1001
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage:
    """Placeholder of a storage, whose values are read after the pickle."""

    def __init__(self, key: str, dtype: torch.dtype, count: int):
        self.key, self.dtype, self.count = key, dtype, count


class _Tensor:
    """Placeholder of a tensor in a storage."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def _tensor(storage, offset, size, stride, *_) -> _Tensor:
    """torch._utils._rebuild_tensor and _v2; requires_grad and hooks are ignored."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise Refused("it has a tensor without a storage")
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise Refused("it has a tensor without a size")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    # With a stride of 0 a large tensor fits into a small storage, and the first operation would need memory for it.
    if math.prod(size) > storage.count or (math.prod(size) and last >= storage.count):
        raise Refused("it has a tensor that is larger than its storage")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(tensor, *_) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise Refused("it has a parameter without a tensor")
    return tensor


def _ordered(*pairs) -> dict:
    """collections.OrderedDict, the type of state dicts, as a dict."""
    made = dict(*pairs)
    if not all(type(key) is str for key in made):
        raise Refused("it has a state dict with keys that are not strings")
    return made


_NAMES = (
    ARRAYS
    | {("torch", name): dtype for name, dtype in _STORAGES.items()}
    | {
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("collections", "OrderedDict"): _ordered,
        ("torch", "Size"): tuple,
    }
)
_CALLED = (_tensor, _parameter, _ordered, tuple)


def _storage(reference) -> _Storage:
    """The storage of a persistent id: ("storage", type, key, device, count), before 1.6 followed by a view."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise Refused("it has an unknown persistent id")
    _, dtype, key, _, count, *view = reference
    if (
        not isinstance(dtype, torch.dtype)
        or not isinstance(key, str)
        or type(count) is not int
        or view not in ([], [None])
    ):
        raise Refused("it has a storage of an unknown type")
    return _Storage(key, dtype, count)


def _load(data, at: int) -> tuple[object, int]:
    """(value of the pickle at an offset, offset of its end)."""
    return unpickle_at(data, at, _NAMES, _CALLED, _storage, (_Tensor, torch.dtype))


def load_torch_file(path: Path):
    """Reads a file of torch.save with plain values and tensors. Damaged files raise almost any exception."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if zipfile.is_zipfile(path):
        return _load_zip(path, mapped)
    return _load_legacy(mapped)


def _load_zip(path: Path, mapped: mmap.mmap):
    check_packed(path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise ValueError("it is a zip without data.pkl")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its byte order is not little-endian")
        value, _ = _load(archive.read(entries["data.pkl"]), 0)

        def storage(of: _Storage) -> Tensor:
            entry, size = entries[f"data/{of.key}"], of.count * of.dtype.itemsize
            if entry.file_size < size:
                raise ValueError(f"storage {of.key} is too short")
            if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
                return _values(mapped, _place(mapped, entry), of)
            return _values(bytearray(archive.read(entry)), 0, of)

        return _with_tensors(value, storage)


def _place(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> int:
    """Offset of the bytes of a stored entry."""
    mark, names, extra = struct.unpack_from("<4s22xHH", mapped, entry.header_offset)
    if mark != b"PK\x03\x04" or entry.compress_size != entry.file_size:
        raise ValueError(f"entry {entry.filename[:60]} is damaged")
    return entry.header_offset + 30 + names + extra


def _values(data, begin: int, of: _Storage) -> Tensor:
    """The values of a storage as a tensor (count,), a writable view of data."""
    if begin + of.count * of.dtype.itemsize > len(data):
        raise ValueError("it is truncated")
    return (
        torch.frombuffer(data, dtype=of.dtype, count=of.count, offset=begin)
        if of.count
        else torch.empty(0, dtype=of.dtype)
    )


def _load_legacy(mapped: mmap.mmap):
    magic, at = _load(mapped, 0)
    protocol, at = _load(mapped, at)
    system, at = _load(mapped, at)
    if (
        magic != MAGIC
        or protocol != PROTOCOL
        or not isinstance(system, dict)
        or system.get("little_endian") is not True
    ):
        raise ValueError("it is not a file of torch.save")
    value, at = _load(mapped, at)
    keys, at = _load(mapped, at)
    needed = {of.storage.key: of.storage for of in _tensors(value)}
    places = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", mapped, at)
        if key not in needed:
            raise ValueError("it has a storage without a tensor")
        if count != needed[key].count:
            raise ValueError(f"the length of storage {key} differs from that of its tensors")
        places[key], at = at + 8, at + 8 + count * needed[key].dtype.itemsize
    return _with_tensors(value, lambda of: _values(mapped, places[of.key], of))


def _tensors(value):
    if isinstance(value, _Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _with_tensors(value, read: Callable[[_Storage], Tensor]):
    """Replaces placeholders by tensors; each storage is read once."""
    storages: dict[str, Tensor] = {}

    def made(item):
        if isinstance(item, dict):
            return {key: made(of) for key, of in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(map(made, item))
        if not isinstance(item, _Tensor):
            return item
        if item.storage.key not in storages:
            storages[item.storage.key] = read(item.storage)
        values = storages[item.storage.key]
        if values.dtype != item.storage.dtype or len(values) < item.storage.count:
            raise ValueError(f"storage {item.storage.key} has tensors of several types")
        return values.as_strided(item.size, item.stride, item.offset)

    return made(value)
