"""Errors that a user can fix."""

LONGEST = 2000  # characters of a message


def shortened(text: str) -> str:
    """A text without its middle part, if it has more than LONGEST characters."""
    if len(text) <= LONGEST:
        return text
    removed = len(text) - LONGEST
    return f"{text[: LONGEST // 2]} ... ({removed} characters) ... {text[-LONGEST // 2 :]}"


class UserError(Exception):
    """One sentence for the user: what is wrong, where (file, line, key or flag), and what to do.

    Commands print it without a traceback and exit with status 2. Long messages, which contain an invalid value, are
    shortened in the middle.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


class BadSample(UserError):
    """One invalid record; other records can still be used."""


class ErrorOnAnotherRank(UserError):
    """An error on another rank, which has printed it already."""
