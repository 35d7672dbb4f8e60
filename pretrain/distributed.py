"""Several processes that train as one, launched by torchrun: connecting, adding up, agreeing.

Everything here is a no-op for a single process. Numbers of the host travel over gloo, gradients on GPUs over nccl, so
that agreeing on a step never waits for the GPU.
"""

import atexit
import contextlib
import datetime
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.batched_detector import choose_device as choose_device  # of a rank, wherever networks run
from shards.errors import ErrorElsewhere, UserError
from shards.ranks import MEND, PLACE, Ranks, launched

T = TypeVar("T")
CPU = torch.device("cpu")
# Every group that was, for good: freeing one, older torch (2.4) waits for gloo's threads and lets no other run, so that
# a thread which has a tensor of the last exchange to give back waits too, for ever.
_groups: list[dist.ProcessGroup] = []
OTHER_DATA = "{data}: is not the same data set here as on the first rank"
PATIENCE = datetime.timedelta(hours=1)  # of gloo: the first rank may be drawing a world or writing a checkpoint
CONNECTING = datetime.timedelta(minutes=10)  # in which all ranks have to meet; a launcher starts them together
SAID_AFTER = 15  # seconds of waiting for other ranks, after which each says that it waits
# Of NCCL: ranks agree over gloo before each exchange between GPUs, so that none has more to wait for than a step,
# compiling included.
NCCL_PATIENCE = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def connected(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Joins the other ranks for the length of the block; a rank that is lost meanwhile is a UserError."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.count == 1:
        yield
        return
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_met(ranks),
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,  # NCCL then connects here, and hangs here if it does
        )
        _groups.append(dist.group.WORLD)
        if device.type == "cuda":
            _set_nccl_timeout(dist.group.WORLD, device)
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error) for name in ("gloo", "NCCL", "Gloo")):
            raise
        raise UserError(
            "the connection to another rank was lost; what it said, or its machine's log, tells why, and --resume goes "
            f"on from the last checkpoint ({str(error).splitlines()[0]})"
        ) from None


def _set_nccl_timeout(group: dist.ProcessGroup, device: torch.device) -> None:
    """Sets the timeout of NCCL alone.

    init_process_group gives its one timeout to every backend of "cpu:gloo,cuda:nccl", and so does torch's own
    _set_pg_timeout, of which this is the part for NCCL. TORCH_DISTRIBUTED_DEBUG=DETAIL wraps the backend in one whose
    timeout cannot be set; it keeps PATIENCE.
    """
    backend = group._get_backend(device)
    if hasattr(backend, "_set_default_timeout"):
        backend._set_default_timeout(NCCL_PATIENCE)


def _met(ranks: Ranks) -> dist.Store:
    """A store of these ranks alone, when all of them have come."""
    place = ":".join(os.environ.get(name, "") for name in PLACE)
    waits = f"rank {ranks.rank} of {ranks.count} waits at {place} for the others"
    notice = threading.Timer(SAID_AFTER, print, (f"{waits}; {MEND}",), {"file": sys.stderr, "flush": True})
    notice.daemon = True
    notice.start()
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=CONNECTING))
        return _unused(store, rank, count)
    except (dist.DistError, ValueError) as error:  # the latter of an environment that torch cannot read
        reason = str(error).splitlines()[0]
        raise UserError(f"{waits}, and they did not come in {CONNECTING} ({reason}); {MEND}") from None
    finally:
        notice.cancel()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends one of several ranks with the status that the block exits with, without taking the interpreter down first.

    gloo's threads may still hold tensors of the last exchange; one that gives them back while the interpreter is being
    taken down aborts the process, and a finished run would look like a failed one.
    """
    try:
        yield
    except SystemExit as end:
        with contextlib.suppress(UserError):  # of an environment that names no ranks
            if launched().count > 1:
                atexit._run_exitfuncs()  # multiprocessing's among them: what it has not given back, it warns of (3.14)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code)
        raise


def _unused(store: dist.Store, rank: int, count: int) -> dist.Store:
    """A part of the store in which no earlier attempt has left anything.

    torchrun keeps one store when it starts all ranks again, and they would find the addresses of the dead ones
    there. The first rank names the attempt; every other says hello under a name of its own and waits for the answer
    to that very hello, so that a hello of an earlier attempt does no harm.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", name)
        attempt = store.get(f"answer/{rank}/{name}").decode()
        store.set(f"here/{attempt}/{rank}", "")
        return dist.PrefixStore(attempt, store)
    until, answered = time.monotonic() + CONNECTING.total_seconds(), {}
    missing = set(range(1, count))
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                hello = store.get(f"hello/{other}").decode()
                if answered.get(other) != hello:
                    answered[other] = hello
                    store.set(f"answer/{other}/{hello}", name)
            if store.check([f"here/{name}/{other}"]):
                missing.remove(other)
        if time.monotonic() > until:
            raise UserError(f"{len(missing)} of {count} ranks did not come, rank {min(missing)} among them; {MEND}")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def add_up(values: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks of a tensor (on the CPU or a GPU), in place."""
    if ranks.count > 1:
        dist.all_reduce(values)
    return values


BLOCK = 1 << 24  # numbers that are added up at once: 64 MB of float32


def add_up_in_blocks(tensors: list[Tensor], ranks: Ranks) -> None:
    """The sums over all ranks of tensors of one type, in place, many of them at a time."""
    if ranks.count == 1:
        return
    block: list[Tensor] = []
    for number, tensor in enumerate(tensors, 1):
        block.append(tensor)
        if sum(x.numel() for x in block) >= BLOCK or number == len(tensors):
            flat = add_up(torch.cat([x.flatten() for x in block]), ranks)
            sums = [part.view_as(x) for part, x in zip(flat.split([x.numel() for x in block]), block, strict=True)]
            torch._foreach_copy_(block, sums)
            block = []


def broadcast(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Gives every rank the first one's values of tensors (on the CPU or a GPU), in place."""
    if ranks.count > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def same_weights(module: nn.Module, ranks: Ranks) -> None:
    """Gives every rank the first one's weights."""
    broadcast(module.state_dict().values(), ranks)


def add_up_numbers(values: list[int], ranks: Ranks) -> list[int]:
    """Sums over all ranks of whole numbers."""
    return add_up(torch.tensor(values, dtype=torch.int64), ranks).tolist() if ranks.count > 1 else values


def on_first(ranks: Ranks, function: Callable[[], T]) -> T:
    """What `function` returns on the first rank, on every rank. Its UserError ends all, and is said once."""
    if ranks.count == 1:
        return function()
    box: list = [None, None]
    failure = None
    if ranks.first:
        try:
            box[0] = function()
        except (UserError, OSError) as error:
            failure, box[1] = error, True
    dist.broadcast_object_list(box, src=0, device=CPU)
    if failure:
        raise failure
    if box[1]:
        raise ErrorElsewhere("the first rank has stopped")
    return box[0]


def on_every_rank(ranks: Ranks, function: Callable[[], T]) -> T:
    """What `function` returns on this rank, when all ranks have called it. Its UserError on one of them ends all."""
    failure, value = None, None
    try:
        value = function()
    except UserError as error:  # raised below, when every rank knows
        failure = error
    if add_up_numbers([int(failure is not None)], ranks)[0]:
        raise failure or ErrorElsewhere("another rank has stopped")
    return value


def same_everywhere(ranks: Ranks, function: Callable[[], object], complaint: str) -> None:
    """Refuses to go on where `function` returns another value on a rank than on the first; alone it is not called."""
    if ranks.count == 1:
        return
    value = on_every_rank(ranks, function)
    differs = value != on_first(ranks, lambda: value)
    if add_up_numbers([int(differs)], ranks)[0]:
        raise UserError(complaint) if differs else ErrorElsewhere(complaint)


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module, its gradients averaged over all ranks in each backward pass, its weights those of the first.

    Every parameter that takes gradients must have a part in every loss; see UsedParameters for a module of which a step
    uses some.

    static_graph=True would save nothing: what it spares is the search for unused parameters, which
    find_unused_parameters=False does not make either. And it rules out gradient accumulation, since torch (2.13) fails
    an internal assertion where the first backward pass is one in no_sync.
    """
    if ranks.count == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)


def without_sync(module: nn.Module):
    """A block in which backward passes add to the gradients of this rank alone."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


class UsedParameters:
    """Sums of gradients over the ranks for a model whose training steps use some of its parameters each.

    DistributedDataParallel with find_unused_parameters=True copies a map of the used parameters to the host in every
    backward pass, and waits for the GPU to do so. Which parameters a step uses follows from its tasks, so here the set
    is determined in the first step of each combination of tasks and kept. The price is that gradients are added up
    after the backward pass and not while it runs.
    """

    def __init__(self, model: nn.Module, ranks: Ranks):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.ranks = ranks
        self._used: dict[frozenset[str], list[nn.Parameter]] = {}

    def add_up(self, tasks: frozenset[str]) -> None:
        """Adds up the gradients of a step over all ranks, in place. tasks: the names of its tasks, on every rank.

        A parameter that is used on another rank but not here takes part with zeros. Gradients of parameters that no
        task of the step uses stay None.

        Raises:
            RuntimeError: a parameter has a gradient that it had on no rank in the first step of these tasks. The
                ranks would diverge without a word if it was not added up.
        """
        if self.ranks.count == 1:
            return
        if tasks not in self._used:
            having = add_up_numbers([int(p.grad is not None) for p in self.parameters], self.ranks)
            self._used[tasks] = [p for p, ranks in zip(self.parameters, having, strict=True) if ranks]
        used = self._used[tasks]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if sum(parameter.grad is not None for parameter in self.parameters) != len(used):
            raise RuntimeError(f"{', '.join(sorted(tasks))}: a step uses parameters that the first step did not use")
        add_up_in_blocks([parameter.grad for parameter in used], self.ranks)
