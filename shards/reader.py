"""Random access to the samples of local shards: views of the memory-mapped tars, nothing copied."""

import mmap

import numpy as np

from shards.dataset import Dataset
from shards.errors import UserError
from shards.image_id import image_id
from shards.index import load_index
from shards.sample import MEMBERS, Sample, decode


class RegionReader:
    """The samples of a data set by number (0 to len - 1, in shard order) or by image id.

    The arrays are read-only views: a sample costs a few page faults and no copy. Shards are mapped on first
    use in each process, so a reader may be handed to data workers.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.indexes = [load_index(shard.path) for shard in dataset.shards]
        for shard, index in zip(dataset.shards, self.indexes, strict=True):
            if shard.samples != len(index):
                raise UserError(f"{shard.path}: holds {len(index)} samples and not the {shard.samples} of dataset.json")
        self.ends = np.cumsum([len(index) for index in self.indexes])
        self._maps: dict[int, mmap.mmap] = {}
        self._numbers: dict[str, int] | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self):
        return self.__dict__ | {"_maps": {}}

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = self.shard_of(number)
        index = self.indexes[shard]
        row = number - int(self.ends[shard]) + len(index)
        data = self._map(shard)
        members = {
            name: data[offset : offset + size]
            for name, (offset, size) in zip(MEMBERS, index.members[row].tolist(), strict=True)
            if size
        }
        return decode(str(index.keys[row]), members, index.path)

    def shard_of(self, number: int) -> int:
        return int(np.searchsorted(self.ends, number, side="right"))

    def _map(self, shard: int) -> memoryview:
        if shard not in self._maps:
            path = self.indexes[shard].path
            try:
                with open(path, "rb") as file:
                    self._maps[shard] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as error:  # an empty file is a ValueError
                raise UserError(f"{path}: cannot be read ({error})") from None
        return self._maps[shard]

    def plain_numbers(self) -> dict[str, int]:
        """The number of every image by the id that annotations have (image_id.image_id)."""
        ids = (image_id(image) for index in self.indexes for image in index.ids.tolist())
        return {image: number for number, image in enumerate(ids)}

    def number_of(self, image: str) -> int:
        """The number of the sample with this image id; KeyError where there is none."""
        if self._numbers is None:
            ids = (known for index in self.indexes for known in index.ids.tolist())
            self._numbers = {known: number for number, known in enumerate(ids)}
        return self._numbers[image]
