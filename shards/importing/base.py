"""The interface of formats of published features for shards.convert."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shards.importing.image_features import Features


@dataclass(frozen=True)
class Record:
    """One unparsed image of a source: its place, its size in the source's unit, and its raw content."""

    place: object
    amount: int
    raw: object


class Source(ABC):
    """A file or folder of published features.

    Attributes:
        holds: description of a path of this format, for messages.
        detector: name of the detector, as far as the format determines it.
        unit: unit of progress.
        several: whether several paths are supported.
        total: size of the source in that unit; None if unknown.
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
        """Whether an existing path has this format."""

    @abstractmethod
    def parts(self, per_shard: int) -> list:
        """Parts of the source that can be read independently: one per shard, or the whole if reading is sequential."""

    @abstractmethod
    def records(self, part) -> Iterator[Record]:
        """Yields the records of a part, in order."""

    @abstractmethod
    def parse(self, raw) -> Features:
        """Parses a record; BadRecord if it is invalid."""

    def where(self, place) -> str:
        """The place of a record, for messages."""
        return f"{self.path}, {place}"

    @abstractmethod
    def some(self, count: int) -> Iterator[Record]:
        """Yields about `count` records, spread over the source if it has random access."""


class ListedSource(Source):
    """A source with a list of its records, `items`; a part is a slice of the list."""

    items: Sequence

    def parts(self, per_shard: int) -> list:
        return [self.items[begin : begin + per_shard] for begin in range(0, len(self.items), per_shard)]

    def some(self, count: int) -> Iterator[Record]:
        return self.records(self.items[:: max(1, len(self.items) // count)])
