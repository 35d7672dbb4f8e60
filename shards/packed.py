"""Sequences whose items are made when they are asked for, from bytes that all processes share."""

from abc import abstractmethod
from collections.abc import Sequence


class PackedSequence(Sequence):
    """A sequence by its length and its items by number; subscripts and slices, also from the end, are made of them."""

    @abstractmethod
    def item(self, number: int):
        """Item `number`, from 0 to len(self) - 1."""

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self.item(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.item(number % len(self))
