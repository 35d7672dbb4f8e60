"""Region features of one image in a published file, and their conversion to a sample of a region shard."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from shards.common.errors import UserError
from shards.common.fp16 import to_half
from shards.common.image_id import image_id
from shards.common.untrusted_input import LARGEST_SIDE, shown
from shards.storage.class_distribution import kept_classes, likeliest
from shards.storage.sample import Sample
from shards.storage.writer import check_sample, safe_key

NUM_CLASSES = 1601  # Visual Genome's 1600 objects; class 0 is the background, object i is class i + 1
LONGEST_ID = 1000  # characters; every id in an index takes as much memory as the longest one
SUM_ERROR = 0.01  # tolerance of the sum of a class distribution, over ten times the error of rounding to float16


class BadRecord(Exception):
    """An invalid record, with the reason."""


@dataclass
class Features:
    """The record of one image.

    Attributes:
        width, height: in pixels.
        features: (n, D).
        boxes: (n, 4), in pixels.
        distribution: (n, classes), or None.
        objects: (ids int (n,) from 0, confidence (n,)) of the most probable object per region, used if there is no
            distribution; or None.
        captions: any number of captions.
    """

    id: str
    width: int
    height: int
    features: np.ndarray
    boxes: np.ndarray
    distribution: np.ndarray | None = None
    objects: tuple[np.ndarray, np.ndarray] | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """Properties shared by all samples: feature size, number of classes (0 for none), and classes stored per region."""

    feature_size: int
    num_classes: int
    kept: int


def shape_of(images: list[Features]) -> Shape:
    """The most common shape of some images; the stored classes have 99% of the probability mass on average."""
    kinds = [_kind(image) for image in images]
    first = images[kinds.index(Counter(kinds).most_common(1)[0][0])]
    size = first.features.shape[-1]
    if first.distribution is None:
        return Shape(size, NUM_CLASSES, 1) if first.objects is not None else Shape(size, 0, 0)
    classes = first.distribution.shape[-1]
    rows = [image.distribution for image in images if image.distribution is not None]
    return Shape(size, classes, kept_classes(np.concatenate([row for row in rows if row.shape[-1] == classes])))


def _kind(image: Features) -> tuple[int, int | None, bool]:
    """Feature size, number of classes, and whether there are objects."""
    classes = None if image.distribution is None else image.distribution.shape[-1]
    return image.features.shape[-1], classes, image.objects is not None


def sample_of(image: Features, shape: Shape, source: str) -> Sample:
    """Converts a record to a sample.

    If there are objects but no distribution, the confidence of the object is stored, and readers spread the remaining
    mass evenly over the other classes.

    Raises:
        BadRecord: the record is invalid, or its shape differs from `shape`.
    """
    n, width, height = len(image.features), image.width, image.height
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise BadRecord(f"has a size of {shown(width)} x {shown(height)}")
    if len(image.id) > LONGEST_ID:
        raise BadRecord(f"has an id of {len(image.id)} characters")
    if not image.boxes.size or image.features.dtype.kind not in "fiu" or image.boxes.dtype.kind not in "fiu":
        raise BadRecord("has no boxes, or features and boxes that are not numbers")
    if image.features.shape != (n, shape.feature_size):
        raise BadRecord(f"has features of size {image.features.shape[-1]}; others have {shape.feature_size}")
    if image.boxes.shape != (n, 4):
        raise BadRecord(f"has {n} features, but boxes of shape {image.boxes.shape}")
    size = np.array([width, height, width, height], np.float32)
    boxes = image.boxes
    if not np.isfinite(boxes).all() or (boxes > size + 1).any() or (boxes < -1).any():
        raise BadRecord(f"has a box outside its {width} x {height} image; are width and height swapped?")
    if boxes.max() <= 1 and min(width, height) > 1:
        raise BadRecord("has boxes between 0 and 1; they should be in pixels, not relative to the image size")
    name = image_id(image.id)
    sample = Sample(
        key=safe_key(name),
        features=to_half(image.features),
        boxes=(boxes / size).clip(0, 1),
        info={"id": name, "width": width, "height": height, "source": source},
        captions=image.captions,
    )
    if shape.num_classes:
        sample.class_ids, sample.class_probs = _classes(image, shape)
    try:
        check_sample(sample)
    except UserError as error:
        raise BadRecord(str(error).partition(": ")[2]) from None
    return sample


def _classes(image: Features, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities) of the classes to store, (n, kept) each, the most probable first."""
    n = len(image.features)
    if image.distribution is not None:
        probs = image.distribution
        if probs.shape != (n, shape.num_classes):
            raise BadRecord(f"has a class distribution of shape {probs.shape}; should be {(n, shape.num_classes)}")
        if not np.isfinite(probs).all() or probs.min() < 0 or probs.max() > 1.001:
            raise BadRecord("has a class distribution with numbers outside 0 to 1")
        sums = probs.sum(1, dtype=np.float64)
        if np.abs(sums - 1).max() > SUM_ERROR:
            row = int(np.abs(sums - 1).argmax())
            raise BadRecord(f"has a class distribution (region {row}) with the sum {sums[row]:.3f}; should be 1")
        return likeliest(probs, shape.kept)
    if image.objects is None or shape.kept != 1:
        raise BadRecord("has no class distribution; others have one")
    objects, confidence = image.objects
    if objects.min() < 0 or objects.max() >= NUM_CLASSES - 1:
        raise BadRecord(f"has an object id outside 0 to {NUM_CLASSES - 2}")
    return (objects + 1)[:, None], confidence[:, None].clip(0, 1)
