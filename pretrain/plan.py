"""How an epoch's pairs are divided: into steps, and each step's into the parts that ranks and accumulation make.

Everything is a division into parts that differ by one pair at most, so that no step is much smaller than the others
and every rank takes the same number of steps, whatever the number of pairs.
"""

from dataclasses import asdict, dataclass

from shards.ranks import ALONE, Ranks


def share(total: int, parts: int, part: int) -> tuple[int, int]:
    """Where part number `part` of `total` things begins and ends."""
    return total * part // parts, total * (part + 1) // parts


@dataclass(frozen=True)
class Layout:
    """Who reads: ranks, data workers of each (0: the rank itself), and accumulated parts of a step."""

    ranks: int = 1
    workers: int = 0
    accumulate: int = 1

    @property
    def readers(self) -> int:
        """Readers of a rank's streams."""
        return max(self.workers, 1)


@dataclass(frozen=True)
class Stage:
    """From step `begin` of an epoch on, what was left of its streams was divided by `layout`."""

    begin: int
    layout: Layout

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Stage":
        return cls(values["begin"], Layout(**values["layout"]))


@dataclass(frozen=True)
class Plan:
    """The steps of a run, and which part of each is this rank's.

    pairs: that are trained on; batch_size: of the whole step, over all ranks; epochs: None where steps says how many
    steps there are; stages: how the epoch that first_step
    lies in was divided up to there (for streams; local shards are read in an order that no layout changes).
    """

    pairs: int
    batch_size: int
    epochs: int | None
    first_step: int = 0
    ranks: Ranks = ALONE
    workers: int = 0
    accumulate: int = 1
    stages: tuple[Stage, ...] = ()
    steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.pairs // self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.steps or self.steps_per_epoch * self.epochs

    @property
    def layout(self) -> Layout:
        return Layout(self.ranks.count, self.workers, self.accumulate)

    def samples_before(self, step: int) -> int:
        """Pairs that were trained on before a step, over all epochs."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return epoch * self.pairs + share(self.pairs, self.steps_per_epoch, step)[0]

    def part(self, step: int, number: int) -> tuple[int, int, int]:
        """(epoch, begin, end): the positions in its epoch of one of this rank's parts of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        begin, end = share(self.pairs, self.steps_per_epoch, place)
        parts = self.ranks.count * self.accumulate
        low, high = share(end - begin, parts, self.ranks.rank * self.accumulate + number)
        return epoch, begin + low, begin + high

    def stages_at(self, step: int) -> tuple[Stage, ...]:
        """The stages of the epoch that a step lies in: those before, and one more where the layout is another."""
        known = self.stages if step // self.steps_per_epoch == self.first_step // self.steps_per_epoch else ()
        known = known or (Stage(0, self.layout),)
        if known[-1].layout == self.layout:
            return known
        first = self.first_step % self.steps_per_epoch
        return (*(stage for stage in known if stage.begin < first), Stage(first, self.layout))
