"""Sequences whose items are created on access, from memory shared by all processes."""

from abc import abstractmethod
from collections.abc import Sequence


class PackedSequence(Sequence):
    """Implements indexing and slicing, also with negative numbers, by __len__ and `item`."""

    @abstractmethod
    def item(self, number: int):
        """Item `number`, from 0 to len(self) - 1."""

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self.item(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.item(number % len(self))
