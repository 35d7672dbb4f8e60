"""Dynamic stop-and-go: decides when a task is paused and when it is resumed (paper, section 3.3).

A task whose validation score no longer improves is paused before it overfits; a paused task whose score drops is
resumed before it is forgotten.
"""

from dataclasses import asdict, dataclass

BETTER = 0.001  # a score improves on the best if it exceeds it by this fraction of the best
DROP = 0.005  # a paused task is resumed when its score is below the best by more than this fraction of the best
PATIENCE = 1  # consecutive validations without improvement after which a task is not yet paused
COOLDOWN = 1  # validations after a change that do not count as without improvement


@dataclass
class StopAndGo:
    """The stop-and-go state of one task, updated by each of its validation scores (higher is better).

    Attributes:
        best: best score so far.
        stopped: whether the task is paused.
        not_better: consecutive validations without improvement.
        cooling: remaining validations of the cooldown.
    """

    best: float | None = None
    stopped: bool = False
    not_better: int = 0
    cooling: int = 0

    def observe(self, score: float) -> str | None:
        """Updates the state by a score; returns a message if the task is paused or resumed, else None."""
        was = self.stopped
        if self.best is None or score > self.best * (1 + BETTER):
            self.best, self.not_better = score, 0
        else:
            self.not_better += 1
        if self.cooling:
            self.cooling, self.not_better = self.cooling - 1, 0
        # As in the reference implementation, a paused task without further improvement is paused again: the cooldown
        # restarts, and a drop in this validation takes effect only at the next one.
        if self.not_better > PATIENCE:
            self._change(stopped=True)
        elif self.stopped and score < self.best * (1 - DROP):
            self._change(stopped=False)
        if was == self.stopped:
            return None
        if self.stopped:
            return f"paused: {score:.4f} is the second consecutive score that does not improve on {self.best:.4f}"
        return f"resumed: {score:.4f} has dropped below {self.best:.4f}"

    def _change(self, stopped: bool) -> None:
        self.stopped, self.cooling, self.not_better = stopped, COOLDOWN, 0

    def to_dict(self) -> dict:
        return asdict(self)
