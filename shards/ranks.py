"""Which of several cooperating processes this one is, as torchrun says it."""

import os
from dataclasses import dataclass

from shards.errors import UserError

LAUNCH = ("RANK", "WORLD_SIZE")
PLACE = ("MASTER_ADDR", "MASTER_PORT")  # of the first rank, where the others meet it
MEND = "start it with torchrun, or unset RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT to run it alone"


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
    """This process's place under torchrun, or the only one where nothing launched it.

    Raises:
        UserError: the environment has a part of what torchrun sets, as an earlier launch may leave it behind, or
            numbers that do not fit together.
    """
    given = [name for name in LAUNCH if os.environ.get(name)]
    if not given:
        return ALONE
    for name in LAUNCH:
        if name not in given:
            raise UserError(f"{given[0]} is set in the environment and {name} is not; {MEND}")
    rank, count, local = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0")
    if not 0 <= rank < count or local < 0:
        raise UserError(f"RANK={rank} WORLD_SIZE={count} in the environment: no such rank; {MEND}")
    if count > 1:
        for name in PLACE:
            if not os.environ.get(name):
                raise UserError(f"WORLD_SIZE={count} is set in the environment and {name} is not; {MEND}")
        _number("MASTER_PORT")
    return Ranks(rank, count, local)


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text} in the environment: should be a whole number; {MEND}") from None


def launch_name() -> str:
    """What the ranks of one launch have in common, and those of another have not; empty for a process alone."""
    return "/".join(os.environ.get(name, "") for name in (*PLACE, "TORCHELASTIC_RUN_ID")).strip("/")
