"""Division of an epoch into steps, and of each step over ranks and gradient accumulation steps.

All divisions have parts that differ by at most one sample, so that all steps have nearly the same size and every rank
takes the same number of steps.
"""

from dataclasses import asdict, dataclass

from shards.common.dist_info import ALONE, Ranks


def part_range(total: int, parts: int, part: int) -> tuple[int, int]:
    """(begin, end) of part number `part` when `total` items are divided into `parts`."""
    return total * part // parts, total * (part + 1) // parts


@dataclass(frozen=True)
class RunLayout:
    """Number of ranks, of data workers per rank (0: the rank itself reads), and of gradient accumulation steps."""

    ranks: int = 1
    workers: int = 0
    accumulate: int = 1

    @property
    def readers(self) -> int:
        """Number of readers of a rank's streams."""
        return max(self.workers, 1)


@dataclass(frozen=True)
class Stage:
    """From step `begin` of an epoch, the remaining samples of its streams are divided by `layout`."""

    begin: int
    layout: RunLayout

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Stage":
        return cls(values["begin"], RunLayout(**values["layout"]))


@dataclass(frozen=True)
class BatchSchedule:
    """The steps of a run and this rank's share of each step.

    Attributes:
        samples: number of training samples per epoch.
        batch_size: samples per step, over all ranks.
        epochs: number of epochs; None if `steps` is given or if there is no end.
        stages: how the epoch of first_step has been divided before it (for streams; the order of local shards does not
            depend on the layout).
    """

    samples: int
    batch_size: int
    epochs: int | None = None
    first_step: int = 0
    ranks: Ranks = ALONE
    workers: int = 0
    accumulate: int = 1
    stages: tuple[Stage, ...] = ()
    steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    @property
    def total_steps(self) -> int:
        """The number of steps of the run. Raises ValueError for a schedule without an end."""
        if self.steps:
            return self.steps
        if self.epochs is None:
            raise ValueError("a schedule without epochs and steps has no end")
        return self.steps_per_epoch * self.epochs

    @property
    def layout(self) -> RunLayout:
        return RunLayout(self.ranks.count, self.workers, self.accumulate)

    def samples_before(self, step: int) -> int:
        """Number of samples trained on before a step, over all epochs."""
        epoch, step = divmod(step, self.steps_per_epoch)
        return epoch * self.samples + part_range(self.samples, self.steps_per_epoch, step)[0]

    def micro_batch_range(self, step: int, number: int) -> tuple[int, int, int]:
        """(epoch, begin, end): this rank's accumulation step `number` of a step, as positions in the epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        begin, end = part_range(self.samples, self.steps_per_epoch, place)
        parts = self.ranks.count * self.accumulate
        low, high = part_range(end - begin, parts, self.ranks.rank * self.accumulate + number)
        return epoch, begin + low, begin + high

    def stages_at(self, step: int) -> tuple[Stage, ...]:
        """The stages of the epoch of a step; the current layout adds one if it differs from the last."""
        known = self.stages if step // self.steps_per_epoch == self.first_step // self.steps_per_epoch else ()
        known = known or (Stage(0, self.layout),)
        if known[-1].layout == self.layout:
            return known
        first = self.first_step % self.steps_per_epoch
        return (*(stage for stage in known if stage.begin < first), Stage(first, self.layout))
