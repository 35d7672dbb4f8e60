"""Mistakes that a user can mend."""

LONGEST = 2000  # characters of a message


def shortened(text: str) -> str:
    """A text without its middle, where it has more than LONGEST characters."""
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - LONGEST
    return f"{text[: LONGEST // 2]} ... ({left_out} characters) ... {text[-LONGEST // 2 :]}"


class UserError(Exception):
    """One sentence for the user: what is wrong, where (file, line, key or flag), what would be right.

    Commands print it without a traceback and exit with status 2. Of a long one, which repeats a value that it refuses,
    the beginning and the end are printed.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


class BadSample(UserError):
    """One record that cannot be used, while those beside it can."""


class ErrorElsewhere(UserError):
    """What stopped another of several cooperating processes, which has said it already."""
