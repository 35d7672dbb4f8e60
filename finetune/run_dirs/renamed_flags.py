"""Flags of runs of earlier versions, by their names of today."""


def renamed_flags(flags: dict) -> dict:
    """The flags of a run; version 0.1 had --one_step, which is --balance sum."""
    flags = dict(flags)
    if flags.pop("one_step", False):
        flags["balance"] = "sum"
    return flags
