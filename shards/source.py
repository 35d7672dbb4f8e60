"""A source of published features: what shards.convert needs of a format."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shards.features import Features


@dataclass(frozen=True)
class Record:
    """One image as it stands in the source: its place there, its size in the source's unit, what was read."""

    place: object
    amount: int
    raw: object


class Source(ABC):
    """A file or folder of published features.

    holds: what a path of this format is, for a message; detector: what made the features, as far as the format says;
    unit: what progress is counted in; several: whether it may be several paths; total: of the source, in that unit,
    None where it is not known.
    """

    holds: ClassVar[str]
    detector: ClassVar[str]
    unit: ClassVar[str] = "images"
    several: ClassVar[bool] = False

    def __init__(self, path: Path):
        self.path = path
        self.total: int | None = None

    @staticmethod
    @abstractmethod
    def recognises(path: Path) -> bool:
        """Whether a path that exists is of this format."""

    @abstractmethod
    def parts(self, per_shard: int) -> list:
        """The source in pieces of work that can be read independently, each a shard's worth or, where the source can
        only be read from front to back, the whole of it."""

    @abstractmethod
    def records(self, part) -> Iterator[Record]:
        """The records of a piece of work, in their order."""

    @abstractmethod
    def parse(self, raw) -> Features:
        """A record's image; BadRecord where it is not whole."""

    def where(self, place) -> str:
        """A record's place in words, for a message."""
        return f"{self.path}, {place}"

    @abstractmethod
    def some(self, count: int) -> Iterator[Record]:
        """About so many records, spread over the source where it can be read anywhere."""


class ListedSource(Source):
    """A source whose records are known one by one: items says which there are, and a part is some of them."""

    items: Sequence

    def parts(self, per_shard: int) -> list:
        return [self.items[begin : begin + per_shard] for begin in range(0, len(self.items), per_shard)]

    def some(self, count: int) -> Iterator[Record]:
        return self.records(self.items[:: max(1, len(self.items) // count)])
