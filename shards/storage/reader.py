"""Random access to the samples of local shards, as views of the memory-mapped tars."""

import mmap
import resource
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.storage.dataset import Dataset
from shards.storage.merged_index import load_rows, text_of
from shards.storage.sample import MEMBERS, Member, Sample, decode

MAPS = (8, 128)  # minimum and maximum number of shards that a reader maps at a time
SHARE_OF_LIMIT = 32  # the maps of a reader use 1/32 of the file descriptors; a process has several readers


class RegionReader:
    """The samples of a data set by number (0 to len - 1, in shard order) or by image id.

    The arrays are read-only views: reading a sample costs a few page faults and no copy. Shards are mapped on first use
    in each process, so a reader can be passed to data workers. At most `maps` shards are mapped at a time, because each
    takes a file descriptor; if all of these are in use, samples of other shards are copied.

    Args:
        dataset: result of open_dataset.
        maps: maximum number of mapped shards; None: 8 to 128, depending on the limit of file descriptors.

    Raises:
        UserError: a shard does not contain the number of samples in dataset.json.
    """

    def __init__(self, dataset: Dataset, maps: int | None = None):
        self.dataset = dataset
        self.maps = maps or _maps_at_once()
        self.rows = load_rows(dataset.shards)
        self.ends = np.cumsum(dataset.counts)
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()  # most recently used last
        self._numbers: dict[str, int] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def __reduce__(self) -> tuple[type["RegionReader"], tuple[Dataset, int]]:
        """Another process maps the same files again."""
        return RegionReader, (self.dataset, self.maps)

    def __getitem__(self, number: int) -> Sample:
        """The sample of a number, with read-only arrays.

        Raises:
            IndexError: the number is negative, or there are not as many samples.
            BadSample: the sample is invalid; others can still be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = self.shard_of(number)
        row = self.rows[shard][number - int(self.ends[shard])]  # negative: from the end of the shard
        places = {name: place for name, place in zip(MEMBERS, row["members"].tolist(), strict=True) if place[1]}
        return decode(text_of(row["key"]), self._members(shard, places), self.dataset.shards[shard].path)

    def shard_of(self, number: int) -> int:
        """The number of the shard that contains a sample."""
        return int(np.searchsorted(self.ends, number, side="right"))

    def _members(self, shard: int, places: dict[str, list[int]]) -> Mapping[str, Member]:
        """The members of a sample. places: (offset, size) of each in the shard."""
        path = self.dataset.shards[shard].path
        try:
            if shard in self._maps:
                self._maps.move_to_end(shard)
            elif self._has_room():
                with open(path, "rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                with open(path, "rb") as file:
                    return {name: _read(file, *place) for name, place in places.items()}
        except (OSError, ValueError) as error:  # an empty file is a ValueError
            raise UserError(f"{path}: cannot be read ({error})") from None
        data = memoryview(self._maps[shard])
        return {name: data[offset : offset + size] for name, (offset, size) in places.items()}

    def _has_room(self) -> bool:
        """Whether another shard can be mapped; closes the least recently used map if needed."""
        if len(self._maps) < self.maps:
            return True
        for shard, data in self._maps.items():
            try:
                data.close()
            except BufferError:  # arrays in it are in use
                continue
            del self._maps[shard]
            return True
        return False

    def plain_numbers(self, unique: bool = False) -> dict[str, int]:
        """Sample numbers by the id used in annotations (image_id.image_id).

        unique: raise UserError for two samples with the same id, of which the last is found otherwise.
        """
        numbers = {image_id(image): number for number, image in enumerate(self._ids())}
        if unique and len(numbers) < len(self):
            image, number = next((i, n) for n, i in enumerate(map(image_id, self._ids())) if numbers[i] != n)
            first, second = (self.dataset.shards[self.shard_of(n)].path for n in (number, numbers[image]))
            raise UserError(f"{first} and {second}: duplicate image id {image}; keep one of the two images")
        return numbers

    def number_of(self, image: str) -> int:
        """The number of the sample with this image id, or id used in annotations; KeyError if it does not exist."""
        if self._numbers is None:
            self._numbers = self.plain_numbers() | {known: number for number, known in enumerate(self._ids())}
        return self._numbers[image if image in self._numbers else image_id(image)]

    def _ids(self) -> Iterator[str]:
        """The image id of every sample."""
        return (text_of(image) for rows in self.rows for image in rows["id"].tolist())


def _maps_at_once() -> int:
    """The number of shards that a reader maps, from the limit of file descriptors of this process."""
    least, most = MAPS
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if limit == resource.RLIM_INFINITY else min(max(limit // SHARE_OF_LIMIT, least), most)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
