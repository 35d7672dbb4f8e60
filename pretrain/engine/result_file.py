"""The schema of result.json of a pretraining run, which is validated when it is read."""

import msgspec


class Result(msgspec.Struct):
    """The fields of result.json that are validated."""

    validation: dict[str, float | None]
    pairs: int
    seconds: float
