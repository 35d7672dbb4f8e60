"""Distributed training launched by torchrun: process groups, reductions and consistency checks.

Everything here is a no-op for a single process. CPU tensors are reduced over gloo and GPU tensors over NCCL, so that
the ranks can agree on a step without waiting for the GPU.
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

from shards.common.device import choose_device as choose_device
from shards.common.dist_info import LAUNCH_HINT, RENDEZVOUS, Ranks, launched
from shards.common.errors import ErrorOnAnotherRank, UserError

T = TypeVar("T")
CPU = torch.device("cpu")
# Process groups are never freed: the destructor of older torch (2.4) joins gloo's threads while holding the GIL, and
# deadlocks with a thread that needs the GIL to release a tensor of the last collective.
_groups: list[dist.ProcessGroup] = []
DIFFERENT_DATA = "{data}: differs from the data set on the first rank; all ranks must read the same files"
GLOO_TIMEOUT = datetime.timedelta(hours=1)  # the first rank may be creating data or writing a checkpoint
RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=10)  # a launcher starts all ranks together
NOTICE_AFTER = 15  # seconds of waiting for other ranks after which a rank prints a notice
# NCCL timeout: ranks synchronise over gloo before each GPU collective, so they wait at most one step, with compilation.
NCCL_TIMEOUT = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def connected(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Context manager for the process group of all ranks; the loss of a rank is raised as a UserError."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.count == 1:
        yield
        return
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=_rendezvous(ranks),
            rank=ranks.rank,
            world_size=ranks.count,
            timeout=GLOO_TIMEOUT,
            device_id=device if device.type == "cuda" else None,  # NCCL connects eagerly, so a hang occurs here
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
            "connection to another rank lost; see the output of that rank or the log of its machine, and use --resume "
            f"to continue from the last checkpoint ({str(error).splitlines()[0]})"
        ) from None


def _set_nccl_timeout(group: dist.ProcessGroup, device: torch.device) -> None:
    """Sets the timeout of the NCCL backend only.

    init_process_group and torch's _set_pg_timeout apply one timeout to every backend of "cpu:gloo,cuda:nccl"; this is
    the part of _set_pg_timeout for NCCL. With TORCH_DISTRIBUTED_DEBUG=DETAIL the backend is wrapped, its timeout cannot
    be set, and GLOO_TIMEOUT applies.
    """
    backend = group._get_backend(device)
    if hasattr(backend, "_set_default_timeout"):
        backend._set_default_timeout(NCCL_TIMEOUT)


def _rendezvous(ranks: Ranks) -> dist.Store:
    """Waits for all ranks and returns a store for this attempt."""
    place = ":".join(os.environ.get(name, "") for name in RENDEZVOUS)
    waits = f"rank {ranks.rank} of {ranks.count} is waiting at {place} for the other ranks"
    notice = threading.Timer(NOTICE_AFTER, print, (f"{waits}; {LAUNCH_HINT}",), {"file": sys.stderr, "flush": True})
    notice.daemon = True
    notice.start()
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        return _unused(store, rank, count)
    except (dist.DistError, ValueError) as error:  # ValueError: environment variables that torch cannot parse
        reason = str(error).splitlines()[0]
        raise UserError(f"{waits}; timed out after {RENDEZVOUS_TIMEOUT} ({reason}); {LAUNCH_HINT}") from None
    finally:
        notice.cancel()


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Exits a distributed rank with the status of the block, without finalising the interpreter.

    gloo's threads may still hold tensors of the last collective; releasing them during interpreter finalisation aborts
    the process, and a finished run would be reported as failed.
    """
    try:
        yield
    except SystemExit as end:
        with contextlib.suppress(UserError):  # raised for invalid environment variables
            if launched().count > 1:
                atexit._run_exitfuncs()  # includes multiprocessing's, without which Python 3.14 warns of leaks
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code)
        raise


def _unused(store: dist.Store, rank: int, count: int) -> dist.Store:
    """A prefix of the store that no earlier attempt has used.

    torchrun keeps one store when it restarts all ranks, and they would find the addresses of the previous processes in
    it. The first rank chooses the prefix. Every other rank stores a greeting with a unique name and waits for the
    answer to that name, so that greetings of earlier attempts are ignored.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", name)
        attempt = store.get(f"answer/{rank}/{name}").decode()
        store.set(f"here/{attempt}/{rank}", "")
        return dist.PrefixStore(attempt, store)
    until, answered = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds(), {}
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
            late = f"{len(missing)} of {count} ranks, including rank {min(missing)}"
            raise UserError(f"timed out waiting for {late}; {LAUNCH_HINT}")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def all_reduce_sum(values: Tensor, ranks: Ranks) -> Tensor:
    """Sums a tensor (on the CPU or a GPU) over all ranks, in place (all-reduce)."""
    if ranks.count > 1:
        dist.all_reduce(values)
    return values


BLOCK = 1 << 24  # elements per all-reduce: 64 MB of float32


def all_reduce_in_buckets(tensors: list[Tensor], ranks: Ranks) -> None:
    """Sums tensors of one dtype over all ranks, in place, in buckets of about BLOCK elements."""
    if ranks.count == 1:
        return
    block: list[Tensor] = []
    for number, tensor in enumerate(tensors, 1):
        block.append(tensor)
        if sum(x.numel() for x in block) >= BLOCK or number == len(tensors):
            flat = all_reduce_sum(torch.cat([x.flatten() for x in block]), ranks)
            sums = [part.view_as(x) for part, x in zip(flat.split([x.numel() for x in block]), block, strict=True)]
            torch._foreach_copy_(block, sums)
            block = []


def broadcast(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Broadcasts tensors (on the CPU or a GPU) from the first rank, in place."""
    if ranks.count > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def same_weights(module: nn.Module, ranks: Ranks) -> None:
    """Broadcasts the weights of a module from the first rank."""
    broadcast(module.state_dict().values(), ranks)


def all_reduce_ints(values: list[int], ranks: Ranks) -> list[int]:
    """Sums integers over all ranks."""
    return all_reduce_sum(torch.tensor(values, dtype=torch.int64), ranks).tolist() if ranks.count > 1 else values


def on_first(ranks: Ranks, function: Callable[[], T]) -> T:
    """Calls `function` on the first rank and returns its result on every rank.

    A UserError or OSError ends all ranks and is printed once.
    """
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
        raise ErrorOnAnotherRank("the first rank has stopped")
    return box[0]


def on_every_rank(ranks: Ranks, function: Callable[[], T]) -> T:
    """Calls `function` on all ranks and returns the local result. A UserError on one rank ends all ranks."""
    failure, value = None, None
    try:
        value = function()
    except UserError as error:  # raised below, when every rank knows
        failure = error
    if all_reduce_ints([int(failure is not None)], ranks)[0]:
        raise failure or ErrorOnAnotherRank("another rank has stopped")
    return value


def same_everywhere(ranks: Ranks, function: Callable[[], object], complaint: str) -> None:
    """Raises UserError(complaint) if `function` returns different values on different ranks.

    It is not called for a single rank.
    """
    if ranks.count == 1:
        return
    value = on_every_rank(ranks, function)
    differs = value != on_first(ranks, lambda: value)
    if all_reduce_ints([int(differs)], ranks)[0]:
        raise UserError(complaint) if differs else ErrorOnAnotherRank(complaint)


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Wraps a module in DistributedDataParallel, which averages gradients and broadcasts the first rank's weights.

    Every trainable parameter must contribute to every loss; see UsedParameters for other modules.

    static_graph=True would save nothing: it avoids the search for unused parameters, which is also off with
    find_unused_parameters=False. And it rules out gradient accumulation, because torch (2.13) fails an internal
    assertion if the first backward pass runs under no_sync.
    """
    if ranks.count == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)


def without_sync(module: nn.Module):
    """Context manager in which backward passes accumulate local gradients without synchronisation."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


class UsedParameters:
    """Sums gradients over the ranks for a model of which each training step uses only some parameters.

    DistributedDataParallel with find_unused_parameters=True copies a map of the used parameters to the host in every
    backward pass, which waits for the GPU. The tasks of a step determine its parameters, so here the set is determined
    in the first step of each combination of tasks and cached. In return, the reduction does not overlap with the
    backward pass.
    """

    def __init__(self, model: nn.Module, ranks: Ranks):
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.ranks = ranks
        self._used: dict[frozenset[str], list[nn.Parameter]] = {}

    def all_reduce(self, tasks: frozenset[str]) -> None:
        """Sums the gradients of a step over all ranks, in place.

        A parameter that only other ranks use gets zeros. Gradients of parameters that no task of the step uses stay
        None.

        Args:
            tasks: names of the tasks of the step, over all ranks.

        Raises:
            RuntimeError: a parameter has a gradient that it had on no rank in the first step of these tasks. Without
                reduction the ranks would silently diverge.
        """
        if self.ranks.count == 1:
            return
        if tasks not in self._used:
            having = all_reduce_ints([int(p.grad is not None) for p in self.parameters], self.ranks)
            self._used[tasks] = [p for p, ranks in zip(self.parameters, having, strict=True) if ranks]
        used = self._used[tasks]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if sum(parameter.grad is not None for parameter in self.parameters) != len(used):
            raise RuntimeError(f"{', '.join(sorted(tasks))}: a step uses parameters that the first step did not use")
        all_reduce_in_buckets([parameter.grad for parameter in used], self.ranks)
