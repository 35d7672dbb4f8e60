"""One optimizer step over the global batch: forward, backward, clipping, and skipping if gradients are not finite.

Nothing here waits for a GPU: counts come with the batches, and the decision to skip a step is made on the device (the
optimizer's found_inf) and read later.
"""

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pretrain.engine.cuda_graph import GraphedPass
from pretrain.engine.distributed import (
    UsedParameters,
    all_reduce_in_buckets,
    all_reduce_sum,
    replicate,
    same_weights,
    without_sync,
)
from pretrain.engine.optimizer import ZeroGradients
from pretrain.models.precision import Precision
from shards.common.dist_info import Ranks
from shards.common.errors import UserError

IN_A_ROW = 10  # consecutive skipped steps after which training stops


class SkippedSteps:
    """Counts optimizer steps with non-finite gradients; on a GPU a step or two late, to avoid synchronisation.

    Attributes:
        count: number of skipped steps.
        applied: number of steps that were not skipped.
        streak: number of steps since the last one that was not skipped.
    """

    def __init__(self, count: int = 0, applied: int = 0):
        self.count, self.applied, self.streak = count, applied, 0
        self._waiting: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def note(self, number: int, finite: Tensor) -> None:
        """Records the result of an optimizer step.

        Args:
            number: of the step of the training loop, from 0.
            finite: bool scalar on the device.
        """
        event = None
        if finite.device.type == "cuda":
            on_host = torch.empty((), dtype=torch.bool, pin_memory=True)
            finite = on_host.copy_(finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((number, finite, event))

    def check(self, wait: bool = False) -> None:
        """Processes the results that have arrived (all, with `wait`); raises UserError after IN_A_ROW skipped steps."""
        while self._waiting and (wait or self._waiting[0][2] is None or self._waiting[0][2].query()):
            number, finite, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            if finite.item():
                self.applied, self.streak = self.applied + 1, 0
                continue
            self.count, self.streak = self.count + 1, self.streak + 1
            if self.streak == IN_A_ROW:
                raise UserError(
                    f"the gradients of {IN_A_ROW} consecutive steps, up to step {number + 1}, were not finite; resume "
                    "from the last checkpoint with a lower --lr or another --precision, or check the features"
                )


@dataclass
class MetricSums:
    """Running sums between two log lines, kept on the device to avoid synchronisation."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor | int], counted: Tensor) -> None:
        """Adds the values of a step if `counted` (bool scalar on the device) is true, so not for skipped steps."""
        for name, value in values.items():
            value = value.double() if isinstance(value, Tensor) else counted.new_full((), value, dtype=torch.float64)
            value = torch.where(counted, value, 0.0)
            self.values[name] = self.values[name] + value if name in self.values else value

    def state(self, ranks: Ranks) -> list[dict[str, float]]:
        """The sums of every rank, for a checkpoint; they are not reset."""
        names = list(self.values)
        table = torch.zeros(ranks.count, len(names), dtype=torch.float64)
        if names:
            table[ranks.rank] = torch.stack(list(self.values.values())).cpu()
        return [dict(zip(names, row, strict=True)) for row in all_reduce_sum(table, ranks).tolist()]

    @classmethod
    def restored(cls, state: list[dict[str, float]], ranks: Ranks, device: torch.device) -> "MetricSums":
        """The sums of a checkpoint; if the number of ranks has changed, the first rank gets the sums over all ranks."""
        if len(state) != ranks.count:
            total = {name: sum(of_rank[name] for of_rank in state) for name in (state or [{}])[0]}
            state = [total] + [dict.fromkeys(total, 0.0)] * (ranks.count - 1)
        own = state[ranks.rank]
        return cls({name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in own.items()})

    def pop_totals(self, ranks: Ranks) -> dict[str, float]:
        """The sums over all ranks as Python floats (empty if nothing was added); resets the sums."""
        if not self.values:
            return {}
        totals = all_reduce_sum(torch.stack(list(self.values.values())), ranks).tolist()
        named = dict(zip(self.values, totals, strict=True))
        self.values = {}
        return named


@dataclass
class Engine:
    """Takes optimizer steps.

    Attributes:
        replica: module that maps a batch to (loss contribution, metric sums); its backward pass synchronises gradients
            unless there is a graph or `used`.
        model: the trained model.
        graph: CUDA graph of the replica's forward and backward pass, for batches that fit and without gradient
            accumulation.
        used: sums the gradients over the ranks after the backward pass; requires replica.task_of(part), the name of the
            task of a batch.
        zeros: makes the optimizer update parameters that a step does not use.
    """

    replica: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    ranks: Ranks
    clip: float
    graph: GraphedPass | None = None
    used: UsedParameters | None = None
    zeros: ZeroGradients | None = None
    skipped: SkippedSteps = field(default_factory=SkippedSteps)

    def step(self, number: int, parts: list, sums: MetricSums, denominators: Sequence[int] = ()) -> None:
        """Takes an optimizer step.

        Args:
            number: of the step of the training loop, from 0; a multi-task one has several optimizer steps.
            parts: this rank's batches, one per accumulation step, on the device.
            sums: get the metric sums of the replica, and `steps` and `gradient_norm`.
            denominators: of the losses, over the global batch; see TrainingTask.denominators.
        """
        self.update(number, self.backward(parts, denominators), sums)

    def backward(
        self, parts: list, denominators: Sequence[int] = (), weights: Sequence[float] | None = None
    ) -> dict[str, Tensor | int]:
        """Adds the gradients of some batches, summed over all ranks; returns this rank's metric sums of the replica.

        The gradients have the factor of the loss scaler of fp16.

        Args:
            parts, denominators: as for `step`.
            weights: factors on the losses of the task steps of a MultiTaskPass; None for none.
        """
        if self.graph is not None and len(parts) == 1 and self.graph.holds(parts[0]):
            added = self.graph(parts[0], denominators)
        else:
            added = self._pass(parts, denominators, weights)
        if self.graph is not None:
            all_reduce_in_buckets([p.grad for p in self.model.parameters() if p.grad is not None], self.ranks)
        if self.used is not None:
            self.used.all_reduce(frozenset(map(self.replica.task_of, parts)))
        return added

    def update(self, number: int, added: dict[str, Tensor | int], sums: MetricSums) -> None:
        """Takes an optimizer step with the gradients of `backward`. added: its result, which is added to the sums."""
        norm, finite = self._update()
        self.skipped.note(number, finite)
        sums.add(added | {"gradient_norm": norm, "steps": 1}, finite)

    def _pass(
        self, parts: list, denominators: Sequence[int], weights: Sequence[float] | None
    ) -> dict[str, Tensor | int]:
        """Accumulates the gradients of the parts and returns their metric sums."""
        added: dict[str, Tensor | int] = {}
        arguments = (denominators,) if weights is None else (denominators, weights)
        summed = self.graph is not None or self.used is not None
        averaged = 1 if summed else self.ranks.count  # DistributedDataParallel averages gradients instead of summing
        if self.graph is not None:
            self.graph.prepare_eager()
        for place, part in enumerate(parts):
            with without_sync(self.replica) if place + 1 < len(parts) else contextlib.nullcontext():
                loss, sums = self.replica(part, *arguments)
                self.scaler.scale(loss * averaged).backward()
            for name, value in sums.items():
                added[name] = added.get(name, 0) + value
        return added

    def _update(self) -> tuple[Tensor, Tensor]:
        """Clips and applies the gradients if they are finite; returns their norm and whether they are finite."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        finite = norm.isfinite()
        shrink = (norm / self.clip).clamp(min=1.0) if self.clip else None  # divisor of the gradients
        fused = not self.scaler.is_enabled() and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        if shrink is not None and not (fused and shrink.dtype == torch.float32):
            torch._foreach_div_(gradients, shrink)
            shrink = None
        if self.zeros is not None:
            self.zeros.fill()
        if fused:  # the optimizer divides the gradients while reading them, which saves a pass; float32 only
            self.optimizer.grad_scale, self.optimizer.found_inf = shrink, (~finite).float()
            self.optimizer.step()
        elif self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif finite.item():
            self.optimizer.step()
        if self.graph is None:
            self.optimizer.zero_grad()
        return norm, finite

    def state(self) -> dict:
        """The state for a checkpoint, in addition to weights and optimizer moments."""
        unused = {} if self.zeros is None else {"unused_parameters": self.zeros.state()}
        steps = {"skipped_steps": self.skipped.count, "applied_steps": self.skipped.applied}
        return {"scaler": self.scaler.state_dict()} | steps | unused

    def restore(self, state: dict) -> None:
        """Restores the state returned by `state`."""
        self.scaler.load_state_dict(state["scaler"])
        # Earlier versions did not count the applied steps; a run that was saved has very probably had some.
        self.skipped = SkippedSteps(state["skipped_steps"], state.get("applied_steps", 1))
        if self.zeros is not None:
            self.zeros.restore(state.get("unused_parameters", []))


def make_engine(
    training_pass: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    clip: float,
    all_used: bool = True,
    graph=None,
    update_unused: bool = False,
) -> Engine:
    """Builds an engine.

    Args:
        training_pass: module with a `model` and a `precision`.
        clip: maximum gradient norm, 0 for no clipping.
        all_used: whether every parameter contributes to every loss; otherwise see distributed.UsedParameters.
        graph: (pairs, longest) of a GraphedPass; None for no CUDA graph.
        update_unused: see optimizer.ZeroGradients.
    """
    scaler = training_pass.precision.scaler()
    replicated = all_used and graph is None
    if not replicated:
        same_weights(training_pass, ranks)
    return Engine(
        replica=replicate(training_pass, ranks) if replicated else training_pass,
        model=training_pass.model,
        optimizer=optimizer,
        precision=training_pass.precision,
        scaler=scaler,
        ranks=ranks,
        clip=clip,
        graph=None if graph is None else GraphedPass(training_pass, *graph, scaler.scale),
        used=None if all_used else UsedParameters(training_pass.model, ranks),
        zeros=ZeroGradients(training_pass.model) if update_unused else None,
    )
