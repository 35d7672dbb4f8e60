"""Dynamic stop-and-go: when one of many tasks pauses, and when it goes on (section 3.3 of the paper).

A task that does not get better is stopped before it overfits; a stopped task whose score falls goes on before it is
forgotten.
"""

from dataclasses import asdict, dataclass

BETTER = 0.001  # a score is better when it is above the best by this share of it
DROP = 0.005  # a stopped task goes again when its score is below the best by more than this share
PATIENCE = 1  # evaluations in a row that may be not better
COOLDOWN = 1  # evaluations after a change whose result is not held against the task


@dataclass
class StopAndGo:
    """One task's state, moved on by each of its validation scores (higher is better).

    not_better: evaluations in a row; cooling: evaluations that are still to be forgiven.
    """

    best: float | None = None
    stopped: bool = False
    not_better: int = 0
    cooling: int = 0

    def observe(self, score: float) -> str | None:
        """Takes in a score; returns why the task stops or goes on, None where it stays as it was."""
        was = self.stopped
        if self.best is None or score > self.best * (1 + BETTER):
            self.best, self.not_better = score, 0
        else:
            self.not_better += 1
        if self.cooling:
            self.cooling, self.not_better = self.cooling - 1, 0
        # As published, a stopped task that is not better once more is stopped anew: it cools down again, and a drop in
        # that very evaluation counts at the next one.
        if self.not_better > PATIENCE:
            self._change(stopped=True)
        elif self.stopped and score < self.best * (1 - DROP):
            self._change(stopped=False)
        if was == self.stopped:
            return None
        if self.stopped:
            return f"stops: {score:.4f} is the second in a row that is not better than {self.best:.4f}"
        return f"goes on: {score:.4f} has fallen below {self.best:.4f}"

    def _change(self, stopped: bool) -> None:
        self.stopped, self.cooling, self.not_better = stopped, COOLDOWN, 0

    def to_dict(self) -> dict:
        return asdict(self)
