"""Image-caption pairs of a data set: captions, the training-validation split, and misaligned captions."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy  # imports its parts when they are used; some take a second

from pretrain.data import random_choices
from shards.common import counter_rng
from shards.common.errors import UserError
from shards.common.random_purposes import SamplePurpose
from shards.storage.text_lists import TextLists


def text_id(text: str) -> int:
    """A 64-bit hash of a text, equal for texts that differ at most in case and spaces."""
    return counter_rng.text_key(" ".join(text.lower().split()))


class Captions:
    """The captions of a data set, numbered in the order of their images.

    If no image has several captions, caption numbers are image numbers.

    Attributes:
        texts: packed, so that data workers share the memory.
        text_ids: int64 (n,), equal for texts that differ at most in case and spaces; -1 for an image without captions.
        begins: int64 (images + 1,); image i has the captions begins[i] to begins[i + 1] - 1.
    """

    def __init__(self, captions: Iterable[str | Sequence[str]]):
        lists = captions if isinstance(captions, TextLists) else TextLists.of(captions)
        self.texts, self.begins = lists.texts, lists.begins
        self.text_ids = np.fromiter((text_id(text) if text else -1 for text in self.texts), np.int64, len(self.texts))

    def __getitem__(self, number: int) -> str:
        return self.texts[number]

    def images_of(self, numbers):
        """The image numbers of captions; numbers: an array or an int."""
        return np.searchsorted(self.begins, numbers, side="right") - 1

    def of_image(self, image: int) -> np.ndarray:
        """The caption numbers of an image, int64, ascending."""
        begin, end = self.begins[image : image + 2].tolist()
        return begin + np.flatnonzero(self.text_ids[begin:end] >= 0)

    def drawn(self, images: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Samples one caption per image with the samples' keys: caption numbers, int64 (B,)."""
        own = [self.of_image(image) for image in images.tolist()]
        picks = random_choices.choose_captions(keys, np.array([len(numbers) for numbers in own], np.int64))
        return np.array([numbers[pick] for numbers, pick in zip(own, picks.tolist(), strict=True)], np.int64)


def linked_texts(captions: Captions) -> np.ndarray:
    """int64 (captions,): the group of each caption; -1 for an image without captions.

    Images that share a text are linked, and a group is a connected component: all captions of an image are in one
    group, and so are all images of a text. The id of a group is the id of its text with the smallest hash, so that the
    order of the ids does not depend on the size of the groups. If no image has several captions, a group is a text.
    """
    ids, images = captions.text_ids, len(captions.begins) - 1
    if len(ids) == images:
        return ids
    numbers = np.flatnonzero(ids >= 0)
    owners = captions.images_of(numbers)
    texts, text_of = np.unique(ids[numbers], return_inverse=True)
    size = images + len(texts)
    links = scipy.sparse.csr_array((np.ones(len(numbers), np.int8), (owners, images + text_of)), shape=(size, size))
    count, labels = scipy.sparse.csgraph.connected_components(links, directed=False)
    order = np.lexsort((counter_rng.mix(texts), labels[images:]))
    present, first = np.unique(labels[images:][order], return_index=True)
    names = np.full(count, -1, np.int64)
    names[present] = texts[order[first]]
    groups = np.full(len(ids), -1, np.int64)
    groups[numbers] = names[labels[owners]]
    return groups


def split_pairs(captions: Captions, validation_pairs: int, among: int) -> tuple[np.ndarray, np.ndarray]:
    """Caption numbers (training, validation), both ascending, split by image and by caption text.

    All pairs of a group (linked_texts) are on one side, so that neither images, nor texts, nor images with a common
    caption are in both. About validation_pairs pairs are held out, at most a tenth, in the order of group ids, which
    are hashes of texts, so the split does not depend on the seed. Fewer than 20 groups are not split. A group of
    several texts and images with more pairs than wanted is used for training, because such links can connect a large
    part of a data set.

    Only the first `among` captions are held out; later captions of a held-out group are in neither part.
    """
    captioned = np.flatnonzero(captions.text_ids >= 0)
    groups = linked_texts(captions)
    near = captioned[captioned < among]
    keys, counts = np.unique(groups[near], return_counts=True)
    wanted = min(validation_pairs, len(near) // 10)
    if wanted < 1 or len(keys) < 20:
        return captioned, captioned[:0]
    large = _linked_by_several_texts(captions, groups, keys, near) & (counts > wanted)
    keys, counts = keys[~large], counts[~large]
    held = np.isin(groups, keys[np.cumsum(counts) - counts < wanted])
    return captioned[~held[captioned]], near[held[near]]


def _linked_by_several_texts(captions: Captions, groups: np.ndarray, keys: np.ndarray, near: np.ndarray) -> np.ndarray:
    """bool (keys,): which groups have several texts, and several images among the captions `near`."""
    others = (groups != captions.text_ids).nonzero()[0]
    if not len(others):
        return np.zeros(len(keys), bool)
    _, first = np.unique(captions.images_of(near), return_index=True)
    images = np.bincount(np.searchsorted(keys, groups[near[first]]), minlength=len(keys))
    return np.isin(keys, groups[others]) & (images > 1)


class MisalignedCaptions:
    """Samples misaligned captions: captions whose text differs from all captions of the image.

    numbers: the caption numbers to sample from.
    """

    def __init__(self, captions: Captions, numbers: np.ndarray):
        self.numbers, self.captions = numbers, captions
        self.text_ids = captions.text_ids
        if len(numbers):
            self._check()

    def _check(self) -> None:
        """Raises UserError if an image has every text, so that there is no misaligned caption for it."""
        texts = np.unique(self.text_ids[self.numbers])
        if np.diff(self.captions.begins).max() < len(texts):
            return
        images, counts = np.unique(self.captions.images_of(self.numbers), return_counts=True)
        for image in images[counts >= len(texts)].tolist():
            if np.isin(texts, self.text_ids[self.captions.of_image(image)]).all():
                raise UserError(
                    "all captions are equal, or one image has all of them; alignment needs different captions of at "
                    "least two images, also among the --validation_pairs"
                )

    def partner(self, number: int, key: int) -> int:
        """The misaligned caption for the pair of caption `number`, sampled uniformly with the pair's key."""
        own = self.text_ids[self.captions.of_image(int(self.captions.images_of(number)))].tolist()
        counters = np.arange(64, dtype=np.int64)
        draws = random_choices.draw(np.array([key]), counters, SamplePurpose.PARTNER)[0]
        for pick in counter_rng.below(draws, len(self.numbers)).tolist():
            if int(self.text_ids[self.numbers[pick]]) not in own:
                return int(self.numbers[pick])
        others = self.numbers[~np.isin(self.text_ids[self.numbers], own)]
        return int(others[int(counter_rng.below(draws[:1], len(others))[0])])
