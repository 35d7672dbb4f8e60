"""Rank and world size of this process, from the environment variables of torchrun."""

import os
from dataclasses import dataclass

from shards.common.errors import UserError

LAUNCH = ("RANK", "WORLD_SIZE")
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")  # address of the first rank
LAUNCH_HINT = (
    "start all ranks with torchrun, or unset RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT to run a single "
    "process"
)


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `count` (the world size); `local`: the local rank on its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def log(self, text: str) -> None:
        if self.first:
            print(text, flush=True)


ALONE = Ranks()


def launched() -> Ranks:
    """The rank of this process under torchrun, or a single rank if it was not launched by torchrun.

    Raises:
        UserError: only some variables of torchrun are set (for example left over from an earlier launch), or they are
            inconsistent.
    """
    given = [name for name in LAUNCH if os.environ.get(name)]
    if not given:
        return ALONE
    for name in LAUNCH:
        if name not in given:
            raise UserError(f"{given[0]} is set in the environment, but {name} is not; {LAUNCH_HINT}")
    rank, count, local = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0")
    if not 0 <= rank < count or local < 0:
        raise UserError(
            f"RANK={rank} WORLD_SIZE={count} LOCAL_RANK={local} in the environment: invalid rank; {LAUNCH_HINT}"
        )
    if count > 1:
        for name in RENDEZVOUS:
            if not os.environ.get(name):
                raise UserError(f"WORLD_SIZE={count} is set in the environment, but {name} is not; {LAUNCH_HINT}")
        _number("MASTER_PORT")
    return Ranks(rank, count, local)


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text} in the environment: must be an integer; {LAUNCH_HINT}") from None


def launch_name() -> str:
    """An identifier shared by the ranks of one launch; empty for a single process."""
    return "/".join(os.environ.get(name, "") for name in (*RENDEZVOUS, "TORCHELASTIC_RUN_ID")).strip("/")
