"""Mistakes that a user can mend."""


class UserError(Exception):
    """One sentence for the user: what is wrong, where (file, line, key or flag), what would be right.

    Commands print it without a traceback and exit with status 2.
    """


class BadSample(UserError):
    """One record that cannot be used, while those beside it can."""


class ErrorElsewhere(UserError):
    """What stopped another of several cooperating processes, which has said it already."""
