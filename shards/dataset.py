"""A data set of region shards: dataset.json, the list of captions, and opening it by path or pattern."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from shards.errors import UserError
from shards.files import expand, read_json, whole_file, write_json
from shards.folder_lock import LOCK
from shards.index import load_index
from shards.reading import LARGEST, shown
from shards.sample import KINDS, MEMBERS, SEVERAL, captions_of, read_npy
from shards.texts import TextLists

FORMAT = 1
FORMAT_SEVERAL = 2  # of several captions per image, which readers of format 1 would take for one long caption
UNFINISHED = "unfinished.json"
BLOCKS, BLOCK = 512, 4096  # of a data set's fingerprint, and bytes of each

Fields = TypeVar("Fields", "Shard", "Dataset")


@dataclass
class Shard:
    """One tar of a data set; sha256 is empty where it came without one."""

    path: str
    samples: int
    bytes: int
    sha256: str = ""


@dataclass
class Dataset:
    """What a reader must know before it reads: the shards in sample order and what all samples share.

    feature_size: D; num_classes: of the class distribution, 0 where the shards have none;
    classes_per_region: k; detector: the name of what made the regions; captions: how many there are; captioned:
    samples with at least one; extra: what the maker of the shards wants to be known, its plan among it.
    """

    shards: list[Shard]
    feature_size: int
    num_classes: int = 0
    classes_per_region: int = 0
    detector: str = "unknown"
    captions: int = 0
    captioned: int = 0
    extra: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.shards[0].path).parent

    @property
    def counts(self) -> np.ndarray:
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def several(self) -> bool:
        """Whether some samples have more than one caption."""
        return self.captions > self.captioned

    @property
    def count_of_captions(self) -> str:
        """How many images have captions, for a message."""
        return f"{self.captioned} with " + (f"{self.captions} captions" if self.several else "captions")

    def __len__(self) -> int:
        return int(self.counts.sum())


def begin_dataset(folder, plan: dict) -> None:
    """Marks `folder` as being written; a plan other than the one that was begun there is refused, if it got anywhere.

    The mark stays until `finish_dataset`, so that a half-written folder is never taken for a data set.
    """
    folder = Path(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {LOCK} == {UNFINISHED}:
        (folder / UNFINISHED).unlink()
    for name in (UNFINISHED, "dataset.json"):
        if (folder / name).exists():
            begun = read_json(folder / name)
            begun = begun if name == UNFINISHED else _plan_of(begun)
            begun = begun if isinstance(begun, dict) else {}
            begun = {key: _as_now(value, plan.get(key)) for key, value in begun.items()}
            if begun != plan:
                differing = sorted(key for key in {*begun, *plan} if begun.get(key) != plan.get(key))
                raise UserError(
                    f"{folder}: holds shards made with other settings or other input ({', '.join(differing)}); "
                    "give another --out or remove it"
                )
    if not (folder / "dataset.json").exists():
        write_json(folder / UNFINISHED, plan)


def _as_now(begun, now):
    """A setting of a plan as this version has it: earlier ones kept paths as they were typed."""
    return os.path.abspath(begun) if isinstance(begun, str) and isinstance(now, str) and os.path.isabs(now) else begun


def _plan_of(described) -> object:
    """The plan in the value of a dataset.json, None where there is none."""
    extra = described.get("extra") if isinstance(described, dict) else None
    return extra.get("plan") if isinstance(extra, dict) else None


def finish_dataset(folder, paths, *, detector: str, num_classes: int, extra: dict) -> Dataset:
    """Writes captions.txt and dataset.json for the shards at `paths`, in that order, and takes the mark away."""
    folder = Path(folder)
    dataset = _scan_dataset(paths, num_classes)
    dataset.detector, dataset.extra = detector, extra
    with whole_file(folder / "captions.txt", "w", encoding="utf-8") as file:
        for path in paths:
            file.writelines("\t".join(captions) + "\n" for captions in _captions_in_tar(load_index(path)))
    described = asdict(dataset) | {"format": FORMAT_SEVERAL if dataset.several else FORMAT}
    if not dataset.several:
        del described["captioned"]
    for shard in described["shards"]:
        shard["path"] = Path(shard["path"]).name
    write_json(folder / "dataset.json", described)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return dataset


def _captions_in_tar(index) -> Iterator[tuple[str, ...]]:
    """The captions of every sample of a shard, with white space normalised to single spaces."""
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
    """Captions on a line each, with single spaces."""
    return tuple(" ".join(caption.split()) for caption in captions)


def _count_captions(index) -> tuple[int, int]:
    """(captions, samples that have one or more) of a shard; only several captions have to be read to be counted."""
    sizes = index.members[:, :, 1] > 0
    several, single = sizes[:, MEMBERS.index(SEVERAL)], sizes[:, MEMBERS.index("txt")]
    alone = int((single & ~several).sum())
    if not several.any():
        return alone, alone
    rows = replace(index, keys=index.keys[several], ids=index.ids[several], members=index.members[several])
    lists = [len(captions) for captions in _captions_in_tar(rows)]
    return alone + sum(lists), alone + sum(map(bool, lists))


def _scan_dataset(paths, num_classes: int | None = None) -> Dataset:
    """A data set from its tars alone: what all samples share is read off the first of them.

    num_classes: where it is not known, one more than the largest class id in the shards.
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


def _first_arrays(index) -> tuple[np.ndarray, np.ndarray | None]:
    """features (N, D) and class_ids (N, k) of a shard's first sample with arrays that can be read; None for no
    classes. What is wrong with others is told when they are read."""
    complaint = None
    with open(index.path, "rb") as file:
        for key, members in zip(index.keys.tolist(), index.members, strict=True):
            arrays = [None, None]
            try:
                for place, name in enumerate(("features.npy", "class_ids.npy")):
                    offset, size = members[MEMBERS.index(name)].tolist()
                    file.seek(offset)
                    arrays[place] = read_npy(file.read(size)) if size else None
                    if arrays[place] is not None and arrays[place].ndim != 2:
                        raise ValueError(f"has the shape {arrays[place].shape}")
                if arrays[0] is not None:
                    return arrays
            except ValueError as error:
                complaint = complaint or f"{key}.{name} {error}"
    raise UserError(f"{index.path}: {complaint or 'has no features'}; make or fetch the shard again")


def _largest_class(index) -> int:
    """The largest class id of a shard, of the members that can be read; what is wrong with others is told when they
    are."""
    with open(index.path, "rb") as file:
        largest = -1
        for offset, size in index.members[:, MEMBERS.index("class_ids.npy")].tolist():
            file.seek(offset)
            with contextlib.suppress(ValueError):
                ids = read_npy(file.read(size)) if size else np.zeros(0, np.int16)
                if ids.dtype.kind in KINDS["class_ids.npy"]:
                    largest = max(largest, int(ids.max(initial=-1)))
        return largest


def open_dataset(pattern: str) -> Dataset:
    """The local data set that a folder, a tar, a glob or a brace pattern names.

    dataset.json beside the tars is used where it is there; otherwise the tars are scanned once.
    """
    _refuse_unfinished(Path(pattern))
    paths = [Path(path) for path in expand(pattern)]
    folder = paths[0].parent
    _refuse_unfinished(folder)
    if not (folder / "dataset.json").exists():
        return _scan_dataset(paths)
    dataset = read_dataset(folder)
    known = {Path(shard.path).name: shard for shard in dataset.shards}
    chosen = []
    for path in paths:
        if path.parent != folder or path.name not in known:
            raise UserError(f"{path}: is not in {folder / 'dataset.json'}; remove that file to have the tars scanned")
        shard = known[path.name]
        if not path.exists():
            raise UserError(f"{path}: is in dataset.json but not on disk")
        if path.stat().st_size != shard.bytes:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes and not the {shard.bytes} of dataset.json; "
                "it was cut short or changed, make or fetch it again"
            )
        chosen.append(shard)
    dataset.shards = chosen
    return dataset


def _refuse_unfinished(folder: Path) -> None:
    if (folder / UNFINISHED).exists():
        raise UserError(f"{folder}: was not written to the end; run the command that makes it again to finish it")


def read_dataset(folder) -> Dataset:
    """dataset.json of a folder, with the shards' full paths."""
    path = Path(folder) / "dataset.json"
    value = read_json(path)
    if not is_readable(value):
        version = value.get("format") if isinstance(value, dict) else None
        raise UserError(f"{path}: format {version} is neither {FORMAT} nor {FORMAT_SEVERAL}, which this version reads")
    try:
        described = value.pop("shards")
        for shard in described:
            if shard["path"] != Path(shard["path"]).name:
                raise UserError(f"{path}: a shard's path is {shard['path']}; should be a file name in this folder")
        shards = [checked(Shard(**shard | {"path": str(Path(folder) / shard["path"])})) for shard in described]
        return described_dataset(shards, value)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: does not have the fields of a data set ({error})") from None


def is_readable(value) -> bool:
    """Whether the value of a dataset.json is of a format that this version reads."""
    return isinstance(value, dict) and value.get("format") in (FORMAT, FORMAT_SEVERAL)


def described_dataset(shards: list[Shard], value: dict) -> Dataset:
    """The data set of these shards with the other fields of a dataset.json.

    Raises:
        TypeError, ValueError: a field is missing, unknown, of another type, or a negative number.
    """
    several = value.pop("format") == FORMAT_SEVERAL
    return checked(Dataset(shards, **value if several else value | {"captioned": value.get("captions", 0)}))


def checked(fields: Fields) -> Fields:
    """A Shard or Dataset whose fields have the types that it declares, and no negative numbers; else a ValueError."""
    msgspec.convert(vars(fields), type(fields))
    for name, value in vars(fields).items():
        if isinstance(value, int) and not 0 <= value < LARGEST:
            raise ValueError(f"{name} is {shown(value)}")
    if isinstance(fields, Dataset) and not fields.shards:
        raise ValueError("it lists no shards")
    return fields


def read_captions(dataset: Dataset) -> TextLists:
    """The captions of every sample of the data set in sample order."""
    captions = _captions_file(dataset)
    if captions is None:
        captions = TextLists.of(c for shard in dataset.shards for c in _captions_in_tar(load_index(shard.path)))
    return captions


def _captions_file(dataset: Dataset) -> TextLists | None:
    """captions.txt cut down to the data set's shards, or None where it is missing or of another data set."""
    path = dataset.folder / "captions.txt"
    if not path.exists() or not (dataset.folder / "dataset.json").exists():
        return None
    with contextlib.suppress(UnicodeDecodeError):
        whole = read_dataset(dataset.folder)
        lines = TextLists.of_lines(np.fromfile(path, np.uint8), whole.several)
        begin, places = 0, {}
        for shard in whole.shards:
            places[shard.path] = begin, begin + shard.samples
            begin += shard.samples
        if len(lines) == begin:
            return TextLists.joined([lines.part(*places[shard.path]) for shard in dataset.shards])
    raise UserError(f"{path}: does not have one line for every sample; remove it to have it read from the shards")


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of what is known of a local data set, and of blocks of its shards, BLOCKS in all but one of each at the
    least: two ranks that read other files under the same names have other ones."""
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


def checksum_errors(dataset: Dataset):
    """Yields a sentence for every shard whose bytes are not those that were written."""
    for shard in dataset.shards:
        if shard.sha256:
            with open(shard.path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != shard.sha256:
                yield f"{shard.path}: its SHA-256 is not the one in dataset.json; make or fetch it again"
