"""Forward and backward pass of a pretraining step as a CUDA graph: captured once, replayed for every batch.

A replay starts all kernels of the pass at once, which a processor that starts them one by one may take longer for than
the GPU does to run them. The shapes in a graph are fixed, so a batch is copied into buffers that have room for more of
everything (Capacities), and what is not filled counts for nothing: dropout and masks are functions of the samples, and
the losses are weighted. A batch for which there is no room goes the ordinary way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from pretrain.batch import Batch
from pretrain.linear import NarrowWeights

WARM_UP = 3  # passes before the capture, in which libraries choose their kernels and kernels are compiled
# Room for what a batch holds beyond the first one: three standard deviations of their difference, so that about one
# batch in 700 holds more, and goes the ordinary way. Rows that are not filled cost every batch.
SPREAD = 3 * math.sqrt(2)
MULTIPLE = 64


@dataclass(frozen=True)
class Capacities:
    """How much a graph's buffers hold: pairs, tokens and regions of the longest, and sums over the batch.

    full: whether every image has all its regions, which spares packing them.
    """

    pairs: int
    longest: int
    regions: int
    tokens: int
    image_rows: int
    predicted_words: int
    predicted_regions: int
    full: bool

    @classmethod
    def of(cls, batch: Batch, pairs: int, longest: int) -> "Capacities":
        """Room for batches like this one. pairs, longest: the most pairs, and tokens of a caption, that may come."""
        size, regions = batch.valid.shape
        pairs, rows, full = max(pairs, size), max(pairs, size) * (regions + 1), batch.regions == size * regions
        lengths, valid = batch.lengths.float(), batch.valid.sum(1).float() + 1
        # One more than there are positions leaves nothing out; as many would say that all are valid (packing.lay_out).
        tokens = _room(lengths, pairs, pairs * longest + 1)
        image_rows = rows if full else _room(valid, pairs, rows + 1)
        words, chosen = (
            _above(count + SPREAD * math.sqrt(count + 1), pairs * most)
            for count, most in (
                (batch.word_count * pairs / max(size, 1), longest),
                (batch.region_count * pairs / max(size, 1), regions),
            )
        )
        return cls(pairs, longest, regions, tokens, image_rows, words, chosen, full)

    def hold(self, batch: Batch) -> bool:
        pairs, regions = batch.valid.shape
        return (
            pairs <= self.pairs
            and batch.input_ids.shape[1] <= self.longest
            and regions <= self.regions
            and batch.pieces <= self.tokens
            and (batch.regions == pairs * self.regions if self.full else batch.image_rows <= self.image_rows)
            and batch.word_count <= self.predicted_words
            and batch.region_count <= self.predicted_regions
        )

    def buffers(self, batch: Batch) -> Batch:
        """A batch with room for so much, on the device and of the types of `batch`; nothing in it."""
        shapes = {
            "input_ids": (self.longest,),
            **{name: (self.regions, *getattr(batch, name).shape[2:]) for name in _OF_REGIONS},
        }
        tensors = {name: x.new_zeros(self.pairs, *shapes.get(name, ())) for name, x in _tensors(batch).items()}
        return replace(
            batch,
            **tensors,
            word_count=self.predicted_words,
            region_count=self.predicted_regions,
            pieces=self.tokens,
            regions=self.image_rows - self.pairs,
            problems=(),
        )


_OF_REGIONS = ("features", "boxes", "valid", "class_ids", "class_probs")
_STALE = ("features", "boxes", "class_ids", "class_probs")  # of regions that are not valid these are not used


def _room(each: Tensor, count: int, most: int) -> int:
    """For sums of `count` numbers of which `each` are some."""
    if not len(each):
        return most
    deviation = each.std().item() if len(each) > 1 else each.max().item()
    return _above(each.mean().item() * count + SPREAD * deviation * math.sqrt(count), most)


def _above(value: float, most: int) -> int:
    return min(-(-math.ceil(value) // MULTIPLE) * MULTIPLE, most)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {f.name: x for f in fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}


def fill(buffers: Batch, batch: Batch) -> None:
    """Copies a batch into buffers that hold it. Pairs beyond it have no token and no region, and are misaligned."""
    for name, source in _tensors(batch).items():
        target = getattr(buffers, name)
        if name not in _STALE and source.shape != target.shape:
            target.zero_()
        target[tuple(slice(size) for size in source.shape)].copy_(source, non_blocking=True)
    buffers.misaligned[len(batch) :] = True


def runs_on(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


def capture(function: Callable[[], None]) -> Callable[[], None]:
    """A function that replays what `function` does on the current GPU."""
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
    """Forward and backward pass of `work` (see work.Pass) over batches, through one CUDA graph.

    The gradients are buffers of the graph: each call writes them anew, and they must stay where they are. pairs,
    longest: the most pairs, and tokens of a caption, that may come; scale: the function that scales the loss.
    """

    def __init__(self, work: nn.Module, pairs: int, longest: int, scale: Callable[[Tensor], Tensor]):
        self.work, self.pairs, self.longest, self.scale = work, pairs, longest, scale
        self.parameters = [parameter for parameter in work.parameters() if parameter.requires_grad]
        self.capacities: Capacities | None = None
        # They spare the GPU work and cost the host some, which matters where it starts the kernels one by one.
        precision = work.precision
        self.narrow = NarrowWeights(work.model, precision.dtype) if precision.name in ("bf16", "fp16") else None

    def holds(self, batch: Batch) -> bool:
        return self.capacities is None or self.capacities.hold(batch)

    def __call__(self, batch: Batch, counts: list[int]) -> dict[str, Tensor]:
        """Numbers for the log (see work.Pass), buffers that the next call writes anew; the gradients are in place."""
        if self.capacities is None:
            self._prepare(batch)
        fill(self.buffers, batch)
        self.counts.copy_(torch.tensor(counts, dtype=self.counts.dtype), non_blocking=True)
        if self._replay is None:
            self._replay = capture(self._pass)
        self._replay()
        return self._numbers

    def make_way(self) -> None:
        """Before a pass without the graph: the gradients that the last step left are zeroed where they are."""
        torch._foreach_zero_([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if self.narrow is not None:
            self.narrow.refresh()

    def _prepare(self, batch: Batch) -> None:
        self.capacities = Capacities.of(batch, self.pairs, max(self.longest, batch.input_ids.shape[1]))
        self.buffers = self.capacities.buffers(batch)
        self.counts = torch.ones(3, device=batch.keys.device)
        self._replay: Callable[[], None] | None = None

    def _pass(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        if self.narrow is not None:
            self.narrow.refresh()
        loss, self._numbers = self.work(self.buffers, self.counts)
        self.scale(loss).backward()
