"""Forward and backward pass of a pretraining step as a CUDA graph: captured once, replayed for every batch.

A replay launches all kernels of the pass at once; launching them one by one can take the host longer than the GPU needs
to run them. The shapes in a graph are fixed. A batch is therefore copied into buffers of a fixed capacity (Capacities).
The padding does not change any result, because masks and dropout are functions of the samples and the losses are
weighted. A batch that exceeds a capacity is computed without the graph.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.models.linear import NarrowWeights

WARM_UP = 3  # passes before the capture, in which kernels are selected and compiled
# Capacity beyond the first batch: three standard deviations of the difference of two batches, so that about one batch
# in 700 exceeds it and is computed without the graph. Unfilled rows cost time in every batch.
SPREAD = 3 * math.sqrt(2)
MULTIPLE = 64


@dataclass(frozen=True)
class Capacities:
    """The sizes of a graph's buffers.

    Attributes:
        pairs: pairs of a batch.
        longest, regions: tokens of a caption, regions of an image.
        tokens, image_rows: packed rows of the text and of the image stream, over the batch.
        predicted_tokens, predicted_regions: positions that are predicted, over the batch.
        full: whether every image has `regions` regions, so that image rows need no packing.
    """

    pairs: int
    longest: int
    regions: int
    tokens: int
    image_rows: int
    predicted_tokens: int
    predicted_regions: int
    full: bool

    @classmethod
    def of(cls, batch: Batch, pairs: int, longest: int) -> "Capacities":
        """Capacities for batches like this one. pairs, longest: upper bounds on pairs and on tokens of a caption."""
        size, regions = batch.valid.shape
        pairs, rows, full = max(pairs, size), max(pairs, size) * (regions + 1), batch.total_regions == size * regions
        lengths, valid = batch.lengths.float(), batch.valid.sum(1).float() + 1
        # One more than the number of positions: an equal count would mean that all are valid (see lay_out).
        tokens = _room(lengths, pairs, pairs * longest + 1)
        image_rows = rows if full else _room(valid, pairs, rows + 1)
        words, chosen = (
            _above(count + SPREAD * math.sqrt(count + 1), pairs * most)
            for count, most in (
                (batch.predicted_tokens * pairs / max(size, 1), longest),
                (batch.predicted_regions * pairs / max(size, 1), regions),
            )
        )
        return cls(pairs, longest, regions, tokens, image_rows, words, chosen, full)

    def hold(self, batch: Batch) -> bool:
        pairs, regions = batch.valid.shape
        return (
            pairs <= self.pairs
            and batch.input_ids.shape[1] <= self.longest
            and regions <= self.regions
            and batch.total_tokens <= self.tokens
            and (batch.total_regions == pairs * self.regions if self.full else batch.image_row_count <= self.image_rows)
            and batch.predicted_tokens <= self.predicted_tokens
            and batch.predicted_regions <= self.predicted_regions
        )

    def buffers(self, batch: Batch) -> Batch:
        """A zero-filled batch of these sizes, with the device and the dtypes of `batch`."""
        shapes = {
            "input_ids": (self.longest,),
            **{name: (self.regions, *getattr(batch, name).shape[2:]) for name in _OF_REGIONS},
        }
        tensors = {name: x.new_zeros(self.pairs, *shapes.get(name, ())) for name, x in _tensors(batch).items()}
        return replace(
            batch,
            **tensors,
            predicted_tokens=self.predicted_tokens,
            predicted_regions=self.predicted_regions,
            total_tokens=self.tokens,
            total_regions=self.image_rows - self.pairs,
            problems=(),
        )


_OF_REGIONS = ("features", "boxes", "valid", "class_ids", "class_probs")
_STALE = ("features", "boxes", "class_ids", "class_probs")  # not used for invalid regions, so not zeroed


def _room(each: Tensor, count: int, most: int) -> int:
    """Capacity for the sum of `count` numbers with the distribution of `each`."""
    if not len(each):
        return most
    deviation = each.std().item() if len(each) > 1 else each.max().item()
    return _above(each.mean().item() * count + SPREAD * deviation * math.sqrt(count), most)


def _above(value: float, most: int) -> int:
    return min(-(-math.ceil(value) // MULTIPLE) * MULTIPLE, most)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {f.name: x for f in fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}


def fill(buffers: Batch, batch: Batch) -> None:
    """Copies a batch into buffers. The remaining pairs have no tokens and no valid regions, and are misaligned."""
    for name, source in _tensors(batch).items():
        target = getattr(buffers, name)
        if name not in _STALE and source.shape != target.shape:
            target.zero_()
        target[tuple(slice(size) for size in source.shape)].copy_(source, non_blocking=True)
    buffers.misaligned[len(batch) :] = True


def runs_on(device: torch.device) -> bool:
    """Whether the device supports CUDA graphs."""
    return device.type == "cuda"


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """Captures the GPU work of `function` as a CUDA graph and returns a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class GraphedPass:
    """Forward and backward pass over batches (see pretraining_pass.PretrainingPass), through one CUDA graph.

    The gradients are buffers of the graph, which each call overwrites; they must not be replaced or set to None.

    Args:
        pairs, longest: upper bounds on the pairs of a batch and on the tokens of a caption.
        scale: the function that scales the loss (of the gradient scaler).
    """

    def __init__(self, training_pass: nn.Module, pairs: int, longest: int, scale: Callable[[Tensor], Tensor]):
        self.training_pass, self.pairs, self.longest, self.scale = training_pass, pairs, longest, scale
        self.parameters = [parameter for parameter in training_pass.parameters() if parameter.requires_grad]
        self.capacities: Capacities | None = None
        # Only in a graph: they save GPU time but cost host time, the bottleneck when kernels are launched one by one.
        precision = training_pass.precision
        self.narrow = (
            NarrowWeights(training_pass.model, precision.dtype) if precision.name in ("bf16", "fp16") else None
        )

    def holds(self, batch: Batch) -> bool:
        return self.capacities is None or self.capacities.hold(batch)

    def __call__(self, batch: Batch, denominators: Sequence[int]) -> dict[str, Tensor]:
        """Computes the gradients and returns metric sums (see pretraining_pass.PretrainingPass), which the next call
        overwrites."""
        if self.capacities is None:
            self._prepare(batch)
        fill(self.buffers, batch)
        self.denominators.copy_(torch.tensor(denominators, dtype=self.denominators.dtype), non_blocking=True)
        if self._replay is None:
            self._replay = capture(self._pass)
        self._replay()
        return self._sums

    def prepare_eager(self) -> None:
        """Prepares a pass without the graph: zeroes the gradients in place and refreshes the narrow weights."""
        torch._foreach_zero_([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if self.narrow is not None:
            self.narrow.refresh()

    def _prepare(self, batch: Batch) -> None:
        self.capacities = Capacities.of(batch, self.pairs, max(self.longest, batch.input_ids.shape[1]))
        self.buffers = self.capacities.buffers(batch)
        self.denominators = torch.ones(3, device=batch.keys.device)
        self._replay: Callable[[], None] | None = None

    def _pass(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        if self.narrow is not None:
            self.narrow.refresh()
        loss, self._sums = self.training_pass(self.buffers, self.denominators)
        self.scale(loss).backward()
