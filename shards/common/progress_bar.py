"""Progress bars: redrawn in place in a terminal, updated rarely in a log file."""

import sys

from tqdm import tqdm

TERMINAL, LOG = 0.5, 30.0  # seconds between two updates


def progress_bar(iterable=None, **options) -> tqdm:
    """A tqdm bar on stderr. options: of tqdm (total, initial, desc, unit, ...)."""
    return tqdm(iterable, mininterval=TERMINAL if sys.stderr.isatty() else LOG, **options)
