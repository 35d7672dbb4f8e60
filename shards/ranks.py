"""Which of several cooperating processes this one is, as torchrun says it."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `count`; `local`: its number on its own machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """True in the process that writes and speaks for all."""
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)


ALONE = Ranks()


def launched() -> Ranks:
    """This process's place under torchrun, or the only one where nothing launched it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
