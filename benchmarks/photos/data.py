"""Creates a data folder in the official layout of the tasks from tars of photographs and their annotation files.

The development parts are used as test splits, so that finetune.clean removes their images from all training data, and a
few images of each training part are held out to select checkpoints. e-SNLI-VE has a folder per fold.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from finetune.config import CleanConfig
from finetune.decontamination.manifest import read_cleaned
from finetune.decontamination.remove_images import clean
from finetune.tasks import find_task
from finetune.tasks.daquar import TEST, TRAINING, read_triples
from finetune.tasks.flickr30k_entities import ANNOTATIONS, SENTENCES
from shards.common.errors import UserError
from shards.common.files import read_json, whole_file, write_json
from shards.common.image_id import image_id
from shards.images.image_files import find_images, find_parts
from shards.images.tar_directory import split_path

CAPTIONS = "dataset_flickr8k.json"
FLICKR_TARS = ("flickr8k-train.tar", "flickr8k-dev.tar")
ENTITIES = ("entities-train.tar.gz", "entities-dev.tar.gz")
ESNLI_VE = ("esnlive_train.csv", "esnlive_dev.csv")
ESNLI_VE_IMAGE = "Flickr30kID"  # column with the image of a pair
DAQUAR_TAR = "daquar-train.tar"
FILES = (*FLICKR_TARS, CAPTIONS, *ENTITIES, *ESNLI_VE, DAQUAR_TAR, TRAINING)

FOLDS = 5  # of the images of e-SNLI-VE
DAQUAR_DEVELOPMENT = 5  # 1 / 5 of DAQUAR's training images are the development part
VALIDATION = 40  # 1 / 40 of Flickr8k's training images are held out to select checkpoints
FOLD_VALIDATION = 10  # 1 / 10 of the e-SNLI-VE training images of a fold are held out to select checkpoints
# Groups of Flickr8k's photographs, in the order of their region shards. Development parts other than Flickr8k's own
# have images among Flickr8k's training photographs: these are `removed`.
GROUPS = ("train", "removed", "val", "dev")
PRETRAINED, NOT_CLEANED = ("train",), ("train", "removed")
PER_TAR = 1000
SHARED = ("flickr_retrieval", "flickr30k_entities", "daquar", "regions")  # equal in every fold


@dataclass(frozen=True)
class Folder:
    """The layout of the output folder."""

    root: Path

    @property
    def regions(self) -> Path:
        return self.root / "data" / "regions"

    @property
    def captions(self) -> Path:
        return self.root / "data" / "flickr_retrieval" / CAPTIONS

    @property
    def counts(self) -> Path:
        """A file that exists if the data folders are complete."""
        return self.root / "data" / "counts.json"

    def photographs(self, name: str) -> Path:
        """The folder with tars of the photographs of flickr or daquar."""
        return self.root / "photographs" / name

    def fold(self, number: int) -> Path:
        """The data folder with a fold of e-SNLI-VE as its test split."""
        return self.root / "data" / f"fold{number}"

    def pairs(self, groups: tuple[str, ...]) -> str:
        """The pattern of the region shards of some groups of Flickr8k's photographs."""
        tars = sorted(self.photographs("flickr").glob("*.tar"))
        numbers = [f"{number:05d}" for number, tar in enumerate(tars) if tar.name.split("-")[1] in groups]
        if not numbers:
            raise UserError(f"{self.photographs('flickr')}: no tars of {', '.join(groups)} found; run the stage data")
        chosen = "{" + ",".join(numbers) + "}" if len(numbers) > 1 else numbers[0]
        return str(self.regions / "flickr" / f"regions-{chosen}.tar")


@dataclass(frozen=True)
class Counts:
    """Numbers of photographs by group, and of examples."""

    flickr: dict[str, int]
    daquar: dict[str, int]
    captions: int
    esnli_ve: int


def by_hash(images: Iterable[str], purpose: str) -> list[str]:
    """Images in the order of the SHA-256 of PURPOSE:NAME, a reproducible random order."""
    return sorted(images, key=lambda image: hashlib.sha256(f"{purpose}:{image}".encode()).digest())


def one_in(images: Sequence[str], number: int, purpose: str) -> list[str]:
    """The first images by hash, one in `number` of all and at least two, because retrieval needs a negative."""
    return by_hash(images, purpose)[: max(2, round(len(images) / number))]


def make_data(source: Path, folder: Folder, sample: int | None) -> Counts:
    """Makes the data folders and the tars of photographs, unless they are there.

    Args:
        source: the folder of FILES.
        sample: number of photographs of each tar, half of Flickr8k's training ones of e-SNLI-VE; None for all.
    """
    settings, begun = {"photos": str(source.resolve()), "sample": sample}, folder.root / "settings.json"
    if begun.exists() and read_json(begun) != settings:
        raise UserError(f"{folder.root}: was made with {read_json(begun)}, not with {settings}; use another --out")
    if folder.counts.exists():
        return Counts(**read_json(folder.counts))
    if missing := [name for name in FILES if not (source / name).exists()]:
        raise UserError(f"{source}: {', '.join(missing)} not found; the folder should contain {', '.join(FILES)}")
    write_json(begun, settings)
    train, dev, daquar = (_images(source / name) for name in (*FLICKR_TARS, DAQUAR_TAR))
    pairs = [_read_csv(source / name) for name in ESNLI_VE]
    entailment = {image for _, rows in pairs for image in rows}
    if sample is not None:
        first = by_hash(entailment.intersection(train), "sample")[: sample // 2]
        others = by_hash(set(train) - entailment, "sample")
        train, dev, daquar = (
            [*first, *others][:sample],
            by_hash(dev, "sample")[:sample],
            by_hash(daquar, "sample")[:sample],
        )
    val = one_in([image for image in train if image not in entailment], VALIDATION, "validation")
    split = dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | dict.fromkeys(dev, "test")
    data = folder.root / "data"
    captions = _write_captions(source / CAPTIONS, folder.captions, split)
    _write_entities(source, data / "flickr30k_entities", split)
    held_out = _write_daquar(source / TRAINING, data / "daquar", daquar)
    written = _write_folds(pairs, folder, split)
    removed = _removed(folder)
    groups = {
        "train": [image for image in train if split[image] == "train" and image not in removed],
        "removed": [image for image in train if image in removed],
        "val": [image for image in train if split[image] == "val" and image not in removed],
        "dev": dev,
    }
    _repack([source / name for name in FLICKR_TARS], groups, folder.photographs("flickr"))
    _repack([source / DAQUAR_TAR], {"all": daquar}, folder.photographs("daquar"))
    counts = Counts(
        flickr={name: len(images) for name, images in groups.items()},
        daquar={"train": len(daquar) - held_out, "dev": held_out},
        captions=captions,
        esnli_ve=written,
    )
    write_json(folder.counts, asdict(counts))
    return counts


def _images(tar: Path) -> list[str]:
    return [found.id for found in find_images(find_parts(str(tar), PER_TAR)[0])]


def _write_captions(source: Path, path: Path, split: dict[str, str]) -> int:
    """Writes the Karpathy file of images with splits; returns its number of captions."""
    value = read_json(source)
    named = [(image_id(image["filename"]), image) for image in value["images"]]
    chosen = [image | {"split": split[key]} for key, image in named if key in split]
    if absent := sorted(set(split) - {key for key, _ in named}):
        raise UserError(f"{source}: no captions of {len(absent)} photographs, for example {absent[0]}; add them")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value | {"images": chosen})
    return sum(len(image["sentences"]) for image in chosen)


def _write_entities(source: Path, folder: Path, split: dict[str, str]) -> None:
    """Writes the annotations of images, and the lists of their splits."""
    for name in (ANNOTATIONS, SENTENCES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    annotated = set()
    for archive in ENTITIES:
        with tarfile.open(source / archive, "r:gz") as tar:
            for member in tar:
                path = Path(member.name)
                if member.isfile() and path.parent.name in (ANNOTATIONS, SENTENCES) and path.stem in split:
                    (folder / path.parent.name / path.name).write_bytes(tar.extractfile(member).read())
                    annotated.add(path.stem)
    for name in ("train", "val", "test"):
        images = [image for image in split if split[image] == name and image in annotated]
        (folder / f"{name}.txt").write_text("".join(f"{image}\n" for image in images))


def _write_daquar(source: Path, folder: Path, images: list[str]) -> int:
    """Writes the questions on training and development images; returns the number of development images."""
    held_out = set(one_in(images, DAQUAR_DEVELOPMENT, "development"))
    triples = [triple for triple in read_triples(source) if triple[2] in set(images)]
    for name, wanted in ((TRAINING, False), (TEST, True)):
        lines = (line for triple in triples if (triple[2] in held_out) == wanted for line in triple)
        with whole_file(folder / name, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    return len(held_out)


def _read_csv(path: Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """(header, image -> its rows) of an e-SNLI-VE file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    if ESNLI_VE_IMAGE not in header:
        raise UserError(f"{path}: has no column {ESNLI_VE_IMAGE}; download it again")
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        found.setdefault(row[header.index(ESNLI_VE_IMAGE)].removesuffix(".jpg"), []).append(row)
    return header, found


def _write_folds(pairs: list, folder: Folder, split: dict[str, str]) -> int:
    """Creates a data folder for each fold, with its images as the test split and the others as train and dev.

    Other tasks are links. Returns the number of pairs in a fold.
    """
    header, rows = pairs[0][0], {image: of for _, part in pairs for image, of in part.items() if image in split}
    order = by_hash(rows, "fold")
    for number in range(FOLDS):
        root, test = folder.fold(number), set(order[number::FOLDS])
        others = [image for image in order if image not in test]
        val = set(one_in(others, FOLD_VALIDATION, "validation"))
        parts = {"test": test, "dev": val, "train": set(others) - val}
        for name, images in parts.items():
            with whole_file(root / "esnli_ve" / f"esnlive_{name}.csv", "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [header, *(row for image in order if image in images for row in rows[image])]
                )
        for name in SHARED:
            with contextlib.suppress(FileExistsError):
                os.symlink(Path("..") / name, root / name)
    return sum(map(len, rows.values()))


def _removed(folder: Folder) -> set[str]:
    """Decontaminates every fold; returns the images of development parts among Flickr8k's training photographs.

    These are the images of all folds together, because all folds share one pretraining run.
    """
    removed = set()
    for number in range(FOLDS):
        fold = folder.fold(number)
        clean(CleanConfig(data=str(fold), processes=1))
        removed |= read_cleaned(fold / "clean", find_task("flickr_retrieval")).images
    return removed


def _repack(sources: list[Path], groups: dict[str, list[str]], folder: Path) -> None:
    """Writes tars of at most PER_TAR photographs of one group each, in the order of the groups.

    Only the photographs are written, in the shape of their originals (see in_original_shape).
    """
    with contextlib.ExitStack() as stack:
        places: dict[str, list] = {}
        for source in sources:
            tar = stack.enter_context(tarfile.open(source, "r:"))
            for member in tar:
                if member.isfile():
                    places.setdefault(image_id(split_path(member.name)[0]), []).append((tar, member))
        for number, (name, images) in enumerate(groups.items()):
            for begin in range(0, len(images), PER_TAR):
                path = folder / f"{number}-{name}-{begin // PER_TAR:05d}.tar"
                with whole_file(path) as file, tarfile.open(fileobj=file, mode="w") as written:
                    for image in images[begin : begin + PER_TAR]:
                        files = {split_path(m.name)[1]: tar.extractfile(m).read() for tar, m in places[image]}
                        picture = in_original_shape(files["jpg"], json.loads(files.get("json", "{}")))
                        entry = tarfile.TarInfo(f"{image}.jpg")
                        entry.size = len(picture)
                        written.addfile(entry, io.BytesIO(picture))


def in_original_shape(picture: bytes, metadata: dict) -> bytes:
    """A JPEG file with the aspect ratio of its original, which annotated boxes and detectors need.

    A photograph that was stretched is resized along the side that was shortened more. One with the right shape, or
    whose original size is not known, is returned as it is.

    Args:
        picture: a JPEG file.
        metadata: original_width and original_height in pixels, as img2dataset writes them.
    """
    if "original_width" not in metadata:
        return picture
    with Image.open(io.BytesIO(picture)) as image:
        ratios = [metadata["original_width"] / image.width, metadata["original_height"] / image.height]
        width, height = (round(side * ratio / min(ratios)) for side, ratio in zip(image.size, ratios, strict=True))
        if (width, height) == image.size:
            return picture
        resized = io.BytesIO()
        image.resize((width, height), Image.Resampling.BICUBIC).save(resized, "JPEG", quality=95)
    return resized.getvalue()
