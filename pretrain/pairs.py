"""The pairs of a data set: which have captions, which are held out, and which caption is swapped for which."""

from collections.abc import Iterable

import numpy as np

from pretrain import masking
from shards import hashing
from shards.errors import UserError
from shards.texts import PackedTexts


class Captions:
    """The captions of a data set by sample number, with a number for each distinct text.

    texts: packed, so that data workers share them; text_ids: int64 (n,), equal where the texts are equal but for case
    and spaces; -1 where there is no caption.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = texts if isinstance(texts, PackedTexts) else PackedTexts.of(texts)
        keys = (hashing.text_key(" ".join(text.lower().split())) if text else -1 for text in self.texts)
        self.text_ids = np.fromiter(keys, np.int64, len(self.texts))

    def __getitem__(self, number: int) -> str:
        return self.texts[number]


def split_pairs(captions: Captions, validation_pairs: int, among: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers (training, validation), both ascending, split by caption text.

    Held-out pairs are of the first `among` samples; pairs beyond them that have a held-out text are left out of
    both sides.

    All pairs of a text are on one side, so that neither a sentence nor other pictures of its scene are in both.
    About validation_pairs of them are held out, at most a tenth, in the order of the texts' hashes: the same
    whatever the seed. Fewer than 20 distinct texts are not split.
    """
    captioned = np.flatnonzero(captions.text_ids >= 0)
    near = captioned[captioned < among]
    keys, counts = np.unique(captions.text_ids[near], return_counts=True)
    wanted = min(validation_pairs, len(near) // 10)
    if wanted < 1 or len(keys) < 20:
        return captioned, captioned[:0]
    held = np.isin(captions.text_ids, keys[np.cumsum(counts) - counts < wanted])
    return captioned[~held[captioned]], near[held[near]]


class Swaps:
    """Partners for swapped captions among some pairs: any other caption of them whose text differs."""

    def __init__(self, captions: Captions, numbers: np.ndarray):
        self.numbers = numbers
        self.text_ids = captions.text_ids
        if len(numbers) and len(np.unique(self.text_ids[numbers])) < 2:
            raise UserError("all captions are the same; alignment needs at least two different ones")

    def partner(self, number: int, key: int) -> int:
        """The sample whose caption `number` gets, drawn with its key; every caption of another text is as likely."""
        own = self.text_ids[number]
        counters = np.arange(64, dtype=np.int64)
        draws = masking.draw(np.array([key]), counters, masking.PARTNER)[0]
        for pick in hashing.below(draws, len(self.numbers)).tolist():
            if self.text_ids[self.numbers[pick]] != own:
                return int(self.numbers[pick])
        others = self.numbers[self.text_ids[self.numbers] != own]
        return int(others[int(hashing.below(draws[:1], len(others))[0])])
