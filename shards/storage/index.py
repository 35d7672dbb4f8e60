"""The index of a shard: offsets of the members of each sample, for reading local shards in place.

A tar contains its members uncompressed at 512-byte boundaries, so with known offsets an array is a view of the
memory-mapped file. The index is next to the tar (NAME.index.npz); if it is missing or does not match the tar, it is
created by a scan of the tar's headers.
"""

import contextlib
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.common.errors import UserError
from shards.common.files import is_stray, whole_file
from shards.common.untrusted_input import read_arrays, reading, reason_of, refuse_special_file, shown
from shards.storage.sample import MEMBERS, SEVERAL


@dataclass
class ShardIndex:
    """The index of one shard.

    Attributes:
        bytes: size of the tar.
        sha256: checksum of the tar, computed when it was written; empty for an index from a scan.
        keys, ids: str (samples,), the keys in the tar and the image ids in the .json members.
        members: int64 (samples, 7, 2), offset and size of each of sample.MEMBERS; 0 and 0 for a missing member.
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
        """Whether all members are inside the tar, and shapes and types are consistent."""
        count, places = len(self.keys), self.members
        if {self.keys.dtype.kind, self.ids.dtype.kind} != {"U"} or self.keys.shape != self.ids.shape:
            return False
        if places.dtype != np.int64 or places.shape != (count, len(MEMBERS), 2):
            return False
        return bool((places >= 0).all() and (places[..., 0] <= self.bytes - places[..., 1]).all())

    def save(self) -> None:
        with whole_file(index_path(self.path)) as file:
            values = {name: value for name, value in vars(self).items() if name != "path"}
            # A separate array for several captions, so that older versions, with one caption, can read the others.
            values |= {"members": self.members[:, :-1], SEVERAL: self.members[:, -1:]}
            np.savez(file, **values)


def index_path(tar_path) -> Path:
    return Path(tar_path).with_suffix(".index.npz")


@contextlib.contextmanager
def tar_errors() -> Iterator[None]:
    """Context manager that turns what tarfile raises for a damaged tar, any exception, into tarfile.ReadError.

    UserError, OSError and tarfile's own errors are not changed.
    """
    try:
        yield
    except (UserError, OSError, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(reason_of(error)) from None


def tar_entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the entries of a tar whose data is stored in one piece.

    Raises:
        tarfile.ReadError: an entry has a negative size, which would lead tarfile back to earlier entries for ever, or
            is sparse, so that it has fewer bytes than its size.
    """
    for entry in tar:
        if entry.size < 0 or entry.issparse():
            raise tarfile.ReadError(f"{shown(entry.name)} has a negative size or holes (tar --sparse)")
        yield entry


def read_headers(tar_path):
    """Yields (name, offset of the data, size) for every file in a local tar.

    Links come last, with the data of their target; those without a target have no data.

    Raises:
        UserError: the file is truncated or not a tar.
    """
    refuse_special_file(tar_path)
    try:
        with tar_errors(), tarfile.open(tar_path, "r:") as tar:
            end, links = 0, []
            for member in tar_entries(tar):
                if member.isfile():
                    yield member.name, member.offset_data, member.size
                elif member.islnk():
                    links.append((member.name, member.linkname))
                elif member.issym():
                    links.append((member.name, posixpath.join(posixpath.dirname(member.name), member.linkname)))
                end = member.offset_data + -(-member.size // 512) * 512
            tar.fileobj.seek(end)
            if tar.fileobj.read(512) != bytes(512):
                raise UserError(f"{tar_path}: the tar has no end marker; it was truncated, fetch it again")
            files = {posixpath.normpath(member.name): member for member in tar if links and member.isfile()}
            for name, target in links:
                linked = files.get(posixpath.normpath(target))
                yield (name, linked.offset_data, linked.size) if linked else (name, 0, 0)
    except tarfile.TarError as error:
        raise UserError(f"{tar_path}: is not a complete tar ({error}); fetch or make it again") from None
    except OSError as error:
        raise UserError(f"{tar_path}: cannot be read ({error.strerror})") from None


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member of a region shard; the suffix is the longest matching one of MEMBERS, or "".

    Keys can contain dots.
    """
    suffix = max((suffix for suffix in MEMBERS if name.endswith(f".{suffix}")), key=len, default="")
    return (name[: -len(suffix) - 1], suffix) if suffix else (name, "")


def scan_tar(tar_path) -> ShardIndex:
    """Builds the index of a tar from its headers; image ids are the keys, because reading every .json is slow."""
    rows: dict[str, np.ndarray] = {}
    for name, offset, size in read_headers(tar_path):
        key, suffix = split_name(name)
        if suffix and not is_stray(name):
            rows.setdefault(key, np.zeros((len(MEMBERS), 2), np.int64))[MEMBERS.index(suffix)] = offset, size
    rows = {key: row for key, row in rows.items() if row[0, 1]}
    if not rows:
        raise UserError(f"{tar_path}: contains no region features (KEY.features.npy); make shards with shards.extract")
    return ShardIndex(
        path=str(tar_path),
        bytes=Path(tar_path).stat().st_size,
        sha256="",
        keys=np.array(list(rows), dtype=np.str_),
        ids=np.array(list(rows), dtype=np.str_),
        members=np.stack(list(rows.values())),
    )


def load_index(tar_path) -> ShardIndex:
    """The index next to the tar, or one from a scan, which is saved if the folder is writable."""
    tar_path = Path(tar_path)
    index = saved_index(tar_path)
    if index is None:
        index = scan_tar(tar_path)
        with contextlib.suppress(OSError, UserError):  # UserError: the disk is full
            index.save()
    return index


def saved_index(tar_path) -> ShardIndex | None:
    """The index next to the tar; None if it is missing, damaged, or for a tar of another size."""
    path = index_path(tar_path)
    refuse_special_file(path)
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
    """The members of a saved index.

    Indexes of earlier versions have no entry for several captions. If the earlier version wrote the shard itself (the
    checksum exists), no sample has several captions; otherwise the tar must be scanned again.
    """
    members = saved["members"]
    if SEVERAL in saved:
        return np.concatenate([members, saved[SEVERAL]], 1)
    if not str(saved["sha256"]):
        raise ValueError("index from a scan by an earlier version")
    return np.pad(members, ((0, 0), (0, 1), (0, 0)))
