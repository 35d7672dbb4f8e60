"""Where each member of each sample lies in a shard, so that local shards are read in place.

A tar holds its members uncompressed at 512-byte boundaries: with their offsets known, an array is a view of
the memory-mapped file. The index stands beside the tar (NAME.index.npz) and is made by a scan of the tar's
headers where it is missing or does not fit the tar any more.
"""

import contextlib
import posixpath
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.files import is_stray, refuse_special_file, whole_file
from shards.reading import read_arrays, reading
from shards.sample import MEMBERS, SEVERAL


@dataclass
class ShardIndex:
    """keys and ids: texts (samples,), the keys in the tar and the image ids of the .json members.

    members: int64 (samples, 7, 2), offset and size of each of sample.MEMBERS, 0 0 where there is none;
    sha256 is empty where the index came from a scan (checksums are written by those who write the shard).
    """

    path: str
    bytes: int
    sha256: str
    keys: np.ndarray
    ids: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self) -> bool:
        """Whether all members lie inside the tar, and keys and ids are as many texts."""
        count, places = len(self.keys), self.members
        if {self.keys.dtype.kind, self.ids.dtype.kind} != {"U"} or self.keys.shape != self.ids.shape:
            return False
        if places.dtype != np.int64 or places.shape != (count, len(MEMBERS), 2):
            return False
        return bool((places >= 0).all() and (places[..., 0] <= self.bytes - places[..., 1]).all())

    def save(self) -> None:
        with whole_file(index_path(self.path)) as file:
            values = {name: value for name, value in vars(self).items() if name != "path"}
            # Several captions have an array of their own: versions that know of one alone read the others as before.
            values |= {"members": self.members[:, :-1], SEVERAL: self.members[:, -1:]}
            np.savez(file, **values)


def index_path(tar_path) -> Path:
    return Path(tar_path).with_suffix(".index.npz")


def read_headers(tar_path):
    """Yields (name, offset of the data, size) for every file in a local tar; a cut tar is a UserError.

    Links come last, with the data of the file that they lead to; a link that leads nowhere has no data.
    """
    refuse_special_file(tar_path)
    try:
        with tarfile.open(tar_path, "r:") as tar:
            end, links = 0, []
            for member in tar:
                if member.isfile():
                    yield member.name, member.offset_data, member.size
                elif member.islnk():
                    links.append((member.name, member.linkname))
                elif member.issym():
                    links.append((member.name, posixpath.join(posixpath.dirname(member.name), member.linkname)))
                end = member.offset_data + -(-member.size // 512) * 512
            tar.fileobj.seek(end)
            if tar.fileobj.read(512) != bytes(512):
                raise UserError(f"{tar_path}: the tar ends without its end mark; it was cut short, fetch it again")
            files = {posixpath.normpath(member.name): member for member in tar if links and member.isfile()}
            for name, target in links:
                leads_to = files.get(posixpath.normpath(target))
                yield (name, leads_to.offset_data, leads_to.size) if leads_to else (name, 0, 0)
    except tarfile.TarError as error:
        raise UserError(f"{tar_path}: is not a whole tar ({error}); fetch or make it again") from None
    except OSError as error:
        raise UserError(f"{tar_path}: cannot be read ({error.strerror})") from None


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member of a region shard: the suffix is the longest of MEMBERS that the name ends with.

    A key may have dots. A member with another suffix has the suffix "".
    """
    suffix = max((suffix for suffix in MEMBERS if name.endswith(f".{suffix}")), key=len, default="")
    return (name[: -len(suffix) - 1], suffix) if suffix else (name, "")


def scan(tar_path) -> ShardIndex:
    """The index of a tar from its headers; image ids are then the keys (reading every .json would be slow)."""
    rows: dict[str, np.ndarray] = {}
    for name, offset, size in read_headers(tar_path):
        key, suffix = split_name(name)
        if suffix and not is_stray(name):
            rows.setdefault(key, np.zeros((len(MEMBERS), 2), np.int64))[MEMBERS.index(suffix)] = offset, size
    rows = {key: row for key, row in rows.items() if row[0, 1]}
    if not rows:
        raise UserError(f"{tar_path}: holds no region features (KEY.features.npy); make shards with shards.extract")
    return ShardIndex(
        path=str(tar_path),
        bytes=Path(tar_path).stat().st_size,
        sha256="",
        keys=np.array(list(rows), dtype=np.str_),
        ids=np.array(list(rows), dtype=np.str_),
        members=np.stack(list(rows.values())),
    )


def load_index(tar_path) -> ShardIndex:
    """The index beside the tar, or one from a scan, saved beside it where that can be written."""
    tar_path = Path(tar_path)
    index = saved_index(tar_path)
    if index is None:
        index = scan(tar_path)
        with contextlib.suppress(OSError):
            index.save()
    return index


def saved_index(tar_path) -> ShardIndex | None:
    """The index beside the tar, or None where it is missing, broken, or of another tar (by the tar's size)."""
    path = index_path(tar_path)
    try:
        size = Path(tar_path).stat().st_size
    except OSError as error:
        raise UserError(f"{tar_path}: cannot be read ({error.strerror})") from None
    try:
        with reading(path):
            saved = read_arrays(path)
            index = ShardIndex(
                str(tar_path), int(saved["bytes"]), str(saved["sha256"]), saved["keys"], saved["ids"], _members(saved)
            )
            return index if index.bytes == size and index.fits() else None
    except (UserError, OSError):
        return None


def _members(saved) -> np.ndarray:
    """The members of a saved index. One that an earlier version saved knows of no sample with several captions; where
    that version wrote the shard itself (its checksum is there), there is none, and otherwise it has to be scanned."""
    members = saved["members"]
    if SEVERAL in saved:
        return np.concatenate([members, saved[SEVERAL]], 1)
    if not str(saved["sha256"]):
        raise ValueError("an index of an earlier version's scan")
    return np.pad(members, ((0, 0), (0, 1), (0, 0)))
