"""All purposes of counter-based random numbers; two with the same number would make the same choices.

The values are part of the results: a changed one changes the order of the data, masks or dropout of the same seed.
"""

from enum import IntEnum, unique


@unique
class EpochPurpose(IntEnum):
    """The third part of a key: counter_rng.key(seed, epoch, purpose, ...)."""

    SHARD_ORDER = 0
    WINDOW_ORDER = 1
    STREAM_BUFFER = 2
    RETRIEVAL_NEGATIVES = 3
    EXAMPLE_ORDER = 4
    GRADIENT_ORDER = 5


@unique
class SamplePurpose(IntEnum):
    """What random numbers of a sample's key decide; each purpose has any number of them (see sample_counter)."""

    DECISION = 0  # one number for each Decision
    PARTNER = 1
    WORD = 2
    WORD_ACTION = 3
    WORD_RANDOM = 4
    REGION = 5
    REGION_ACTION = 6
    DROPOUT = 7


@unique
class Decision(IntEnum):
    """Decisions about a sample that need one random number."""

    MISALIGNED = 0
    CAPTION = 1
    HARD_NEGATIVE = 2


def sample_counter(purpose: SamplePurpose, number):
    """The counter of a sample's key for random number `number` (an int, or an array or tensor of int64)."""
    return number * len(SamplePurpose) + int(purpose)
