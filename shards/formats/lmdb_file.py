"""LMDB as the published code keeps features and pretraining pairs.

Features: image id -> pickle of {image_id, image_h, image_w, num_boxes, boxes, features}, arrays or base64 of float32
(cls_prob, objects and objects_conf may be among them); "keys" -> pickle of the list of ids.

Pairs (written with tensorpack): number -> msgpack, or a pickle, of the eight components [features, class distribution,
boxes in pixels, num_boxes, image_h, image_w, image_id, caption]; "__keys__" -> the list of numbers.
"""

import contextlib
import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.features import BadRecord, Features
from shards.items import image_of, text_of
from shards.source import ListedSource, Record
from shards.unpickle import unpickle

KEYS = (b"keys", b"__keys__")
MAGIC = struct.pack("<I", 0xBEEFC0DE)  # of a file of LMDB, 16 bytes from its begin
PICKLE = b"\x80"
PAIR = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")


class LMDB(ListedSource):
    """Read anywhere, by several processes: each opens the file for itself."""

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
        """The ids in their listed order; where the list is missing, those that there are."""
        with self._opened() as environment, environment.begin() as reading:
            for name in KEYS:
                listed = reading.get(name)
                if listed is not None:
                    try:
                        return [_as_bytes(key) for key in decode(listed)]
                    except (ValueError, BadRecord) as error:
                        raise UserError(f"{self.path}: its list of keys cannot be read ({error})") from None
            return [bytes(key) for key in reading.cursor().iternext(keys=True, values=False) if key not in KEYS]

    @contextlib.contextmanager
    def _opened(self):
        """The environment; the file is open as long as it is used, since a process may open it but once."""
        try:
            import lmdb
        except ImportError:
            raise UserError(f"{self.path}: reading LMDB needs two more packages; pip install lmdb msgpack") from None
        file = _data_file(self.path)
        try:
            environment = lmdb.open(str(file), subdir=False, readonly=True, lock=False, meminit=False, max_readers=1)
        except lmdb.Error as error:
            raise UserError(f"{self.path}: is not a whole LMDB ({error})") from None
        # What lies behind the end of the file is mapped all the same, and reading it would kill the process.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if file.stat().st_size < needed:
            environment.close()
            raise UserError(
                f"{file}: has {file.stat().st_size} bytes and its own directory asks for {needed}; it was cut short, "
                "fetch it again"
            )
        try:
            yield environment
        except lmdb.Error as error:
            raise UserError(f"{self.path}: is damaged ({error}); fetch it again") from None
        finally:
            environment.close()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "items"}  # a part has its own

    def records(self, part: list[bytes]) -> Iterator[Record]:
        import lmdb

        with self._opened() as environment:
            reading = environment.begin(buffers=True)
            for key in part:
                try:
                    value = reading.get(key)
                except lmdb.Error as error:
                    value = BadRecord(f"cannot be read ({error}); the file is damaged, fetch it again")
                    reading.abort()  # a transaction that met an error reads nothing more
                    reading = environment.begin(buffers=True)
                yield Record(key.decode(errors="backslashreplace"), 1, (key, value))

    def where(self, place: str) -> str:
        return f"{self.path}, key {place}"

    def parse(self, raw) -> Features:
        key, value = raw
        if isinstance(value, BadRecord):
            raise value
        if value is None:
            raise BadRecord("is in the list of keys and has no value")
        try:
            item = decode(value)
        except ValueError as error:
            raise BadRecord(f"cannot be read: {error}") from None
        if isinstance(item, list | tuple) and len(item) == len(PAIR):
            return image_of(dict(zip(PAIR, item, strict=True)), None)
        if isinstance(item, dict):
            return image_of(item, text_of(key))
        raise BadRecord(f"is {type(item).__name__}; should be an item of features, or the {len(PAIR)} parts of a pair")


def _data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def _as_bytes(key) -> bytes:
    return key if isinstance(key, bytes) else str(key).encode()


def decode(value):
    """What a value holds: a pickle, or msgpack with arrays as msgpack_numpy writes them."""
    if bytes(value[:1]) == PICKLE:
        return unpickle(value, arrays=True)
    try:
        import msgpack
    except ImportError:
        raise UserError("reading these pairs needs one more package; pip install msgpack") from None
    try:
        limit = len(value)
        return msgpack.unpackb(value, raw=True, strict_map_key=False, object_hook=_array, max_bin_len=limit)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _array(item: dict):
    """An array or a number of msgpack_numpy; other maps as they are, with texts for keys."""
    if b"nd" not in item:
        return {text_of(key): value for key, value in item.items()}
    kind = item[b"type"]
    if not isinstance(kind, bytes) or np.dtype(kind.decode()).hasobject:
        raise ValueError(f"an array of {kind!r}")
    values = np.frombuffer(item[b"data"], np.dtype(kind.decode()))
    return values.reshape(item[b"shape"]) if item[b"nd"] else values[0]


FORMAT = LMDB
