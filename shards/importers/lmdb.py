"""LMDBs of features and of pretraining pairs in the formats of the reference implementation.

Features: image id -> pickle of {image_id, image_h, image_w, num_boxes, boxes, features}, arrays or base64 of float32
(optionally with cls_prob, objects and objects_conf); "keys" -> pickle of the list of ids.

Pairs (written with tensorpack): number -> msgpack, or a pickle, of the eight components [features, class distribution,
boxes in pixels, num_boxes, image_h, image_w, image_id, caption]; "__keys__" -> the list of numbers.
"""

import contextlib
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.image_id import SAME_ID, printable_id
from shards.common.untrusted_input import reading
from shards.importing.base import ListedSource, Record
from shards.importing.image_features import BadRecord, Features
from shards.importing.record_parsing import image_of, text_of
from shards.parsing.lmdb_reader import MAGIC, Damaged, LMDBFile
from shards.parsing.safe_pickle import unpickle

KEYS = (b"keys", b"__keys__")
PICKLE = b"\x80"
PAIR = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")


class LMDB(ListedSource):
    """Random access by several processes, each with its own map of the file."""

    holds = "an LMDB of the published features or pretraining pairs"
    detector = "published (LMDB)"

    def __init__(self, path: Path):
        super().__init__(path)
        self.total = len(self.items)

    @staticmethod
    def recognises(path: Path) -> bool:
        file = _data_file(path)
        if not file.is_file():
            return False
        with open(file, "rb") as opened:
            return opened.read(20)[16:] == MAGIC

    @functools.cached_property
    def items(self) -> list[bytes]:
        """The ids in the order of the list of keys; all keys if there is no list."""
        with LMDBFile(_data_file(self.path)) as file:
            try:
                listed = next((value for name in KEYS if (value := file.get(name)) is not None), None)
                if listed is None:
                    wanted = [key for key in file if key not in KEYS]
                else:
                    with reading(f"{self.path}: list of keys"):
                        wanted = [_as_bytes(key) for key in decode(listed)]
                    self._report_others(file, wanted)
            except Damaged as error:
                raise UserError(f"{self.path}: is damaged ({error}); fetch it again") from None
        self._refuse_same_ids(wanted)
        return wanted

    def _refuse_same_ids(self, keys: list[bytes]) -> None:
        """Raises UserError for different keys with the same image id, such as train/1 and test/1."""
        seen: dict[str, bytes] = {}
        for key in keys:
            image = printable_id(os.fsdecode(key))
            if seen.setdefault(image, key) != key:
                both = f"{_shown(seen[image])} and {_shown(key)}"
                raise UserError(f"{self.path}, keys {both}: {SAME_ID.format(image=image)}")

    def _report_others(self, file: LMDBFile, wanted: list[bytes]) -> None:
        """Prints how many entries are not in the list of keys, as where the program that wrote it was stopped."""
        if file.entries <= len(wanted) + 1:  # the keys are read only where there are more of them
            return
        known = {*KEYS, *wanted}
        with contextlib.suppress(Damaged):  # the entries of a damaged page are reported when they are converted
            others = [key for key in file if key not in known]
            if others:
                example = _shown(others[0])
                print(f"{self.path}: {len(others)} entries are not in its list of keys and are ignored ({example})")

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "items"}  # parts contain their items

    def records(self, part: list[bytes]) -> Iterator[Record]:
        with LMDBFile(_data_file(self.path)) as file:
            for key in part:
                try:
                    value = file.get(key)
                except Damaged as error:
                    value = error
                yield Record(_shown(key), 1, (key, value))

    def where(self, place: str) -> str:
        return f"{self.path}, key {place}"

    def parse(self, raw) -> Features:
        key, value = raw
        if value is None:
            raise BadRecord("is in the list of keys, but has no value")
        if isinstance(value, Damaged):
            raise BadRecord(f"cannot be read ({value}); the file is damaged, fetch it again")
        with reading(hint="", error=BadRecord):
            item = decode(value)
        if isinstance(item, list | tuple) and len(item) == len(PAIR):
            return image_of(dict(zip(PAIR, item, strict=True)), None)
        if isinstance(item, dict):
            return image_of(item, text_of(key))
        raise BadRecord(f"is {type(item).__name__}; should be a dict of features, or the {len(PAIR)} parts of a pair")


def _data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _as_bytes(key) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


def decode(value):
    """Decodes a value: a pickle, or msgpack with arrays of msgpack_numpy."""
    if bytes(value[:1]) == PICKLE:
        return unpickle(value, arrays=True)
    try:
        import msgpack
    except ImportError:
        raise UserError("reading these pairs needs the package msgpack; pip install msgpack") from None
    return msgpack.unpackb(value, raw=True, strict_map_key=False, object_hook=_array, max_bin_len=len(value))


def _array(item: dict):
    """An array or a number of msgpack_numpy; other maps become dicts with string keys."""
    if b"nd" not in item:
        return {text_of(key): value for key, value in item.items()}
    kind, data, shape = item[b"type"], item[b"data"], item.get(b"shape", ())
    kind = np.dtype(kind.decode()) if isinstance(kind, bytes) else None
    if kind is None or kind.kind not in "biuf" or not isinstance(data, bytes):
        raise ValueError("an array of an unsupported type")
    if not item[b"nd"]:
        shape = ()
    if len(data) != kind.itemsize * math.prod(shape):
        raise ValueError("an array whose shape does not match its bytes")
    values = np.frombuffer(data, kind).reshape(shape)
    return values if item[b"nd"] else values.item()


FORMAT = LMDB
