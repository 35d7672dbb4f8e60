"""Compact storage of millions of examples.

Five million examples take four gigabytes as Python objects, and as much again in every data worker, which copies the
memory when it updates their reference counts. As bytes in one array they take a fifth of that, shared by all workers.
"""

import dataclasses
import pickle
from collections.abc import Iterable

import numpy as np

from finetune.annotations.example import Example
from shards.common.serialized_sequence import PackedSequence

_FIELDS = tuple(field.name for field in dataclasses.fields(Example))


class PackedExamples(PackedSequence):
    """A sequence of examples that are pickled in one array and unpickled on access."""

    def __init__(self, examples: Iterable[Example]):
        parts = [pickle.dumps(tuple(getattr(one, name) for name in _FIELDS), protocol=5) for one in examples]
        self.ends = np.cumsum([0, *map(len, parts)])
        self.data = np.frombuffer(b"".join(parts), np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def item(self, number: int) -> Example:
        return Example(*pickle.loads(self.data[self.ends[number] : self.ends[number + 1]]))
