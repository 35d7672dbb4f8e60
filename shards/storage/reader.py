"""Random access to the samples of local shards, as views of the memory-mapped tars."""

import mmap
import resource
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.storage.dataset import Dataset
from shards.storage.index import load_index
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
        self.indexes = [load_index(shard.path) for shard in dataset.shards]
        for shard, index in zip(dataset.shards, self.indexes, strict=True):
            if shard.samples != len(index):
                raise UserError(
                    f"{shard.path}: contains {len(index)} samples, but {shard.samples} according to dataset.json; make "
                    "or fetch it again"
                )
        self.ends = np.cumsum([len(index) for index in self.indexes])
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()  # most recently used last
        self._numbers: dict[str, int] | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}

    def __getitem__(self, number: int) -> Sample:
        """The sample of a number, with read-only arrays.

        Raises:
            IndexError: the number is negative, or there are not as many samples.
            BadSample: the sample is invalid; others can still be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = self.shard_of(number)
        index = self.indexes[shard]
        row = number - int(self.ends[shard]) + len(index)
        places = {name: place for name, place in zip(MEMBERS, index.members[row].tolist(), strict=True) if place[1]}
        members = self._members(shard, places)
        return decode(str(index.keys[row]), members, index.path)

    def shard_of(self, number: int) -> int:
        """The number of the shard that contains a sample."""
        return int(np.searchsorted(self.ends, number, side="right"))

    def _members(self, shard: int, places: dict[str, list[int]]) -> Mapping[str, Member]:
        """The members of a sample. places: (offset, size) of each in the shard."""
        path = self.indexes[shard].path
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

    def plain_numbers(self) -> dict[str, int]:
        """Sample numbers by the id used in annotations (image_id.image_id)."""
        ids = (image_id(image) for index in self.indexes for image in index.ids.tolist())
        return {image: number for number, image in enumerate(ids)}

    def number_of(self, image: str) -> int:
        """The number of the sample with this image id; KeyError if it does not exist."""
        if self._numbers is None:
            ids = (known for index in self.indexes for known in index.ids.tolist())
            self._numbers = {known: number for number, known in enumerate(ids)}
        return self._numbers[image]


def _maps_at_once() -> int:
    """The number of shards that a reader maps, from the limit of file descriptors of this process."""
    least, most = MAPS
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if limit == resource.RLIM_INFINITY else min(max(limit // SHARE_OF_LIMIT, least), most)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
