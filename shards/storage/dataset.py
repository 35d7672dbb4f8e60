"""Data sets of region shards: dataset.json, captions.txt, and opening them by path or pattern."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from shards.common.errors import UserError
from shards.common.files import expand, read_json, whole_file, write_json
from shards.common.folder_lock import LOCK
from shards.common.untrusted_input import LARGEST, refuse_special_file, shown
from shards.storage.index import ShardIndex, index_path, load_index
from shards.storage.merged_index import load_rows
from shards.storage.sample import KINDS, MEMBERS, SEVERAL, captions_of, read_npy
from shards.storage.text_lists import TextLists

FORMAT = 1
FORMAT_SEVERAL = 2  # several captions per image, which readers of format 1 would read as one long caption
UNFINISHED = "unfinished.json"
UNKNOWN = "unknown"  # detector of shards that do not name it
BLOCKS, BLOCK = 512, 4096  # number of blocks in the fingerprint of a data set, and bytes per block

Fields = TypeVar("Fields", "Shard", "Dataset")


@dataclass
class Shard:
    """One tar of a data set.

    Attributes:
        path: of the tar.
        samples: number of samples.
        bytes: size of the tar.
        sha256: checksum of the tar, empty if unknown.
    """

    path: str
    samples: int
    bytes: int
    sha256: str = ""


@dataclass
class Dataset:
    """Description of a data set: its shards in sample order, and properties shared by all samples.

    Attributes:
        shards: the tars.
        feature_size: D, the number of values per region feature.
        num_classes: size of the class distribution; 0 without classes.
        classes_per_region: k, the number of stored classes per region.
        detector: name of the detector.
        captions: number of captions.
        captioned: number of samples with at least one caption.
        extra: additional fields of the command that made the shards, including its plan.
    """

    shards: list[Shard]
    feature_size: int
    num_classes: int = 0
    classes_per_region: int = 0
    detector: str = UNKNOWN
    captions: int = 0
    captioned: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return Path(self.shards[0].path).parent

    @property
    def counts(self) -> np.ndarray:
        """int64 (shards,), the number of samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def has_several_captions(self) -> bool:
        """Whether some samples have more than one caption."""
        return self.captions > self.captioned

    @property
    def count_of_captions(self) -> str:
        """The number of images with captions, as text."""
        return f"{self.captioned} with " + (f"{self.captions} captions" if self.has_several_captions else "captions")

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.counts.sum())


def begin_dataset(
    folder: str | Path, plan: dict[str, Any], current: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> None:
    """Marks `folder` as unfinished, so that it is not used as a data set before `finish_dataset`.

    Args:
        plan: settings and inputs that determine the content.
        current: maps the settings of an earlier version's plan to their current names and values.

    Raises:
        UserError: the folder contains shards that were made with another plan.
    """
    folder = Path(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK} == {UNFINISHED}:
        (folder / UNFINISHED).unlink()
    for name in (UNFINISHED, "dataset.json"):
        if (folder / name).exists():
            stored = read_json(folder / name) if name == UNFINISHED else plan_of(folder)
            stored = current(stored) if isinstance(stored, dict) else {}
            stored = {key: _as_now(value, plan.get(key)) for key, value in stored.items()}
            if stored != plan:
                differing = sorted(key for key in {*stored, *plan} if stored.get(key) != plan.get(key))
                raise UserError(
                    f"{folder}: contains shards made with other settings or other input ({', '.join(differing)}); "
                    "use another --out or remove the folder"
                )
    if not (folder / "dataset.json").exists():
        write_json(folder / UNFINISHED, plan)


def _as_now(stored: object, now: object) -> object:
    """A stored value of a plan in the form of this version: earlier versions stored relative paths."""
    if isinstance(stored, str) and isinstance(now, str) and os.path.isabs(now):
        return os.path.abspath(stored)
    return stored


class Extra(msgspec.Struct):
    """The fields of `extra` in dataset.json that are validated."""

    plan: dict[str, Any] = {}
    class_names: list[str] = []


class PlanFields(msgspec.Struct):
    """The fields of dataset.json that are validated where a data set is not opened."""

    detector: str = UNKNOWN
    extra: Extra = msgspec.field(default_factory=Extra)


def plan_of(folder: str | Path) -> dict[str, Any]:
    """The plan in the dataset.json of a folder; empty if it has none."""
    described = read_json(Path(folder) / "dataset.json", PlanFields)
    plan: dict[str, Any] = described.get("extra", {}).get("plan", {})
    return plan


def detector_and_weights(detector: str, extra: dict[str, Any]) -> tuple[str, str]:
    """(name, fingerprint of the weights) of a detector. extra: see Dataset."""
    return detector, str(extra.get("plan", {}).get("fingerprint"))


def remove_empty_shards(shards: Iterable[str | Path]) -> list[Path]:
    """Removes shards without samples, all of whose images were skipped, and returns the others.

    dataset.json does not list them, and a folder with unlisted shards cannot be opened.
    """
    kept = []
    for path in map(Path, shards):
        if len(load_index(path)):
            kept.append(path)
        else:
            path.unlink()
            index_path(path).unlink(missing_ok=True)
    return kept


def finish_dataset(
    folder: str | Path, paths: Sequence[str | Path], *, detector: str, num_classes: int, extra: dict[str, Any]
) -> Dataset:
    """Writes captions.txt, dataset.json and, for many samples, dataset.index; then removes the mark.

    paths: of the shards, in order.
    """
    folder = Path(folder)
    dataset = _scan_dataset(paths, num_classes)
    dataset.detector, dataset.extra = detector, extra
    with whole_file(folder / "captions.txt", "w", encoding="utf-8") as file:
        for path in paths:
            file.writelines("\t".join(captions) + "\n" for captions in _captions_in_tar(load_index(path)))
    described = asdict(dataset) | {"format": FORMAT_SEVERAL if dataset.has_several_captions else FORMAT}
    if not dataset.has_several_captions:
        del described["captioned"]
    for shard in described["shards"]:
        shard["path"] = Path(shard["path"]).name
    load_rows(dataset.shards)  # writes the merged index of many samples
    write_json(folder / "dataset.json", described)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return dataset


def _captions_in_tar(index: ShardIndex) -> Iterator[tuple[str, ...]]:
    """The captions of every sample of a shard, with normalised white space."""
    names = ("txt", SEVERAL)
    places = index.members[:, [MEMBERS.index(name) for name in names]].tolist()
    with open(index.path, "rb") as file:
        for key, of_sample in zip(index.keys, places, strict=True):
            members = {}
            for name, (offset, size) in zip(names, of_sample, strict=True):
                if size:
                    file.seek(offset)
                    members[name] = file.read(size)
            try:
                yield normalised(captions_of(members, errors="replace"))
            except ValueError as error:
                raise UserError(f"{index.path}: {key}.{SEVERAL} {error}; make the shard again") from None


def normalised(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with white space normalised to single spaces."""
    return tuple(" ".join(caption.split()) for caption in captions)


def _count_captions(index: ShardIndex) -> tuple[int, int]:
    """(number of captions, number of samples with captions) of a shard; only lists of captions need to be read."""
    sizes = index.members[:, :, 1] > 0
    several, single = sizes[:, MEMBERS.index(SEVERAL)], sizes[:, MEMBERS.index("txt")]
    alone = int((single & ~several).sum())
    if not several.any():
        return alone, alone
    rows = replace(index, keys=index.keys[several], ids=index.ids[several], members=index.members[several])
    lists = [len(captions) for captions in _captions_in_tar(rows)]
    return alone + sum(lists), alone + sum(map(bool, lists))


def _scan_dataset(paths: Sequence[str | Path], num_classes: int | None = None) -> Dataset:
    """Describes a data set from its tars; shared properties are those of the first sample.

    num_classes: None for one more than the largest class id in the shards.
    """
    indexes = [load_index(path) for path in paths]
    shards = [Shard(index.path, len(index), index.bytes, index.sha256) for index in indexes]
    features, class_ids = _first_arrays(indexes[0])
    captions, captioned = np.sum([_count_captions(index) for index in indexes], 0).tolist()
    if class_ids is None:
        num_classes = 0
    elif num_classes is None:
        num_classes = 1 + max(_largest_class(index) for index in indexes)
    per_region = 0 if class_ids is None else class_ids.shape[1]
    return Dataset(shards, features.shape[1], num_classes, per_region, captions=captions, captioned=captioned)


def _first_arrays(index: ShardIndex) -> tuple[np.ndarray, np.ndarray | None]:
    """Features (N, D) and class_ids (N, k) or None, of the first valid sample of a shard.

    Errors in other samples are reported when these are read.
    """
    complaint = None
    with open(index.path, "rb") as file:
        for key, members in zip(index.keys.tolist(), index.members, strict=True):
            arrays = {}
            try:
                for name in ("features.npy", "class_ids.npy"):
                    offset, size = members[MEMBERS.index(name)].tolist()
                    file.seek(offset)
                    if size:
                        arrays[name] = read_npy(file.read(size))
                        if arrays[name].ndim != 2:
                            raise ValueError(f"has the shape {arrays[name].shape}")
                if "features.npy" in arrays:
                    return arrays["features.npy"], arrays.get("class_ids.npy")
            except ValueError as error:
                complaint = complaint or f"{key}.{name} {error}"
    raise UserError(f"{index.path}: {complaint or 'no features found'}; make or fetch the shard again")


def _largest_class(index: ShardIndex) -> int:
    """The largest class id of a shard, over the valid members; errors in others are reported when these are read."""
    with open(index.path, "rb") as file:
        largest = -1
        for offset, size in index.members[:, MEMBERS.index("class_ids.npy")].tolist():
            file.seek(offset)
            with contextlib.suppress(ValueError):
                ids = read_npy(file.read(size)) if size else np.zeros(0, np.int16)
                if ids.dtype.kind in KINDS["class_ids.npy"]:
                    largest = max(largest, int(ids.max(initial=-1)))
        return largest


def open_dataset(pattern: str | Path) -> Dataset:
    """Opens a local data set given by a folder, a tar, a glob pattern or a brace pattern.

    Without dataset.json next to the tars, they are scanned.

    Raises:
        UserError: there is no such file, the folder is incomplete, or a shard differs from dataset.json.
    """
    _refuse_unfinished(Path(pattern))
    paths = [Path(path) for path in expand(str(pattern))]
    folder = paths[0].parent
    _refuse_unfinished(folder)
    if not (folder / "dataset.json").exists():
        return _scan_dataset(paths)
    dataset = read_dataset(folder)
    known = {Path(shard.path).name: shard for shard in dataset.shards}
    chosen = []
    for path in paths:
        if path.parent != folder or path.name not in known:
            raise UserError(f"{path}: is not in {folder / 'dataset.json'}; remove that file to scan the tars")
        shard = known[path.name]
        if not path.exists():
            raise UserError(f"{path}: is in dataset.json but does not exist; fetch it, or make the shards again")
        if path.stat().st_size != shard.bytes:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, but {shard.bytes} in dataset.json; "
                "it was truncated or changed, make or fetch it again"
            )
        chosen.append(shard)
    dataset.shards = chosen
    return dataset


def _refuse_unfinished(folder: Path) -> None:
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder}: is incomplete; run the command that creates it again to finish it")


def read_dataset(folder: str | Path) -> Dataset:
    """Reads dataset.json of a folder; paths of shards are made complete."""
    path = Path(folder) / "dataset.json"
    value = read_json(path)
    if not is_readable(value):
        version = value.get("format") if isinstance(value, dict) else None
        raise UserError(f"{path}: unsupported format {version}; this version reads {FORMAT} and {FORMAT_SEVERAL}")
    try:
        described = value.pop("shards")
        for shard in described:
            if shard["path"] != Path(shard["path"]).name:
                raise UserError(f"{path}: path of a shard is {shard['path']}; should be a file name in this folder")
        shards = [checked(Shard(**shard | {"path": str(Path(folder) / shard["path"])})) for shard in described]
        return described_dataset(shards, value)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: does not have the fields of a data set ({error})") from None


def is_readable(value: object) -> bool:
    """Whether this version supports the format of the content of dataset.json."""
    return isinstance(value, dict) and value.get("format") in (FORMAT, FORMAT_SEVERAL)


def described_dataset(shards: list[Shard], value: dict[str, Any]) -> Dataset:
    """Builds a Dataset from shards and the other fields of dataset.json.

    Raises:
        TypeError, ValueError: a field is missing, unknown, negative, or has another type.
    """
    several = value.pop("format") == FORMAT_SEVERAL
    return checked(Dataset(shards, **value if several else value | {"captioned": value.get("captions", 0)}))


def checked(fields: Fields) -> Fields:
    """Returns a Shard or Dataset after checking the types of its fields; ValueError for others or negative numbers."""
    msgspec.convert(vars(fields), type(fields))
    for name, value in vars(fields).items():
        if isinstance(value, int) and not 0 <= value < LARGEST:
            raise ValueError(f"{name} is {shown(value)}")
    if isinstance(fields, Dataset):
        msgspec.convert(fields.extra, Extra)
        if not fields.shards:
            raise ValueError("it lists no shards")
    return fields


def read_captions(dataset: Dataset) -> TextLists:
    """The captions of every sample, in sample order, as a sequence of tuples of strings.

    Raises:
        UserError: captions.txt does not have a line per sample, or captions in a shard cannot be read.
    """
    captions = _captions_file(dataset)
    if captions is None:
        captions = TextLists.of(c for shard in dataset.shards for c in _captions_in_tar(load_index(shard.path)))
    return captions


def _captions_file(dataset: Dataset) -> TextLists | None:
    """The part of captions.txt for the data set's shards; None if captions.txt or dataset.json is missing."""
    path = dataset.folder / "captions.txt"
    if not path.exists() or not (dataset.folder / "dataset.json").exists():
        return None
    refuse_special_file(path)
    with contextlib.suppress(UnicodeDecodeError):
        whole = read_dataset(dataset.folder)
        lines = TextLists.of_lines(np.fromfile(path, np.uint8), whole.has_several_captions)
        begin, places = 0, {}
        for shard in whole.shards:
            places[shard.path] = begin, begin + shard.samples
            begin += shard.samples
        if len(lines) == begin:
            return TextLists.joined([lines.part(*places[shard.path]) for shard in dataset.shards])
    raise UserError(f"{path}: does not have one line per sample; remove it to read the captions from the shards")


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the description of a local data set and of about BLOCKS blocks of its shards, at least one per shard.

    It differs between ranks that read different files under the same names.
    """
    known = (dataset.feature_size, dataset.num_classes, dataset.classes_per_region, dataset.detector, dataset.captions)
    digest = hashlib.sha256(repr(known).encode())
    of_shard = max(1, BLOCKS // len(dataset.shards))
    for shard in dataset.shards:
        path = Path(shard.path)
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                digest.update(repr((path.name, shard.samples, size, shard.sha256)).encode())
                for number in range(of_shard):
                    file.seek(size * number // of_shard)
                    digest.update(file.read(BLOCK))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def checksum_errors(dataset: Dataset) -> Iterator[str]:
    """Yields an error message for every shard whose checksum differs from dataset.json."""
    for shard in dataset.shards:
        if shard.sha256:
            with open(shard.path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard.sha256:
                yield f"{shard.path}: SHA-256 differs from dataset.json; make or fetch it again"
