"""Signals that stop a run."""

import os
import signal
import time

TOGETHER = 2.0  # seconds within which signals count as one: torchrun forwards the Ctrl-C of a terminal a second time


class StopSignals:
    """Defers signals that stop a run to the end of the current step; a second one interrupts immediately.

    SIGHUP, sent when a terminal is closed, counts as SIGTERM, unless it is ignored, as under nohup.
    """

    def __init__(self, log=print):
        self.signal: int | None = None
        self.log, self.at = log, 0.0

    def __enter__(self):
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, _) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
            number = signal.SIGTERM
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
            self.log("stopping after this step; send the signal again to stop immediately")
        elif time.monotonic() - self.at > TOGETHER:
            raise KeyboardInterrupt

    def _leave_terminal(self) -> None:
        """Discards further output to the terminal, because writing to a closed one is an error."""
        with open(os.devnull, "w") as nowhere:
            for descriptor in self.terminals:
                os.dup2(nowhere.fileno(), descriptor)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
