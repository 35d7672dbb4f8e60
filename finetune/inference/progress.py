"""Progress lines of a long prediction, with the estimated remaining time."""

import time

from pretrain.engine.metrics_logger import duration

PAUSE = 5.0  # seconds between two progress lines


class TimeLeft:
    """Prints the progress of predictions and the estimated remaining time, every PAUSE seconds."""

    def __init__(self, title: str, log):
        self.title, self.log = title, log
        self.began = self.printed = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - self.printed >= PAUSE:
            self.printed = now
            left = (now - self.began) / done * (total - done)
            self.log(f"{self.title}: {done / total:.0%} done, {duration(left)} left")
