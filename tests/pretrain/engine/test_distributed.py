"""What ranks exchange in a step, with the other rank played by the test."""

import datetime

import pytest
import torch
import torch.distributed as dist
from launching import free_port
from torch import nn

from pretrain.engine import distributed
from pretrain.engine.distributed import CPU, UsedParameters, connected
from pretrain.engine.step import MetricSums, make_engine
from pretrain.models.precision import Precision
from shards.common.dist_info import Ranks
from shards.common.errors import UserError

TWO = Ranks(0, 2)


class Heads(nn.Module):
    """A trunk with two heads, of which a batch uses one, as Engine takes it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("trunk", "a", "b")}).double()
        self.precision = Precision("float64", torch.device("cpu"))

    def forward(self, part, denominators=()):
        head, x = part
        return self.model[head](self.model["trunk"](x)).square().sum(), {}

    def task_of(self, part) -> str:
        return part[0]


@pytest.fixture
def exchanged(monkeypatch):
    """The numbers that were added up, exchange by exchange; the other rank has zeros, and uses what this one does."""
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda values, **_: calls.append(values.clone()))
    monkeypatch.setattr(dist, "broadcast", lambda values, **_: None)
    return calls


def engine_of(training_pass):
    optimizer = torch.optim.AdamW(training_pass.model.parameters(), lr=0.1, weight_decay=0.1)
    return make_engine(training_pass, optimizer, TWO, clip=0.0, all_used=False)


def test_gradients_of_what_a_task_uses_are_exchanged_and_nothing_else(exchanged):
    training_pass = Heads()
    engine, x = engine_of(training_pass), torch.ones(2, 3, dtype=torch.float64)
    sizes = {}
    for number, heads in enumerate([("a",), ("a",), ("b",), ("a", "b"), ("a", "b"), ("b",)]):
        exchanged.clear()
        engine.step(number, [(head, x) for head in heads], MetricSums())
        sizes[number] = [len(values) for values in exchanged]
    map_of_used, layer = 6, 12  # weights and biases of three layers; numbers in one layer
    assert sizes == {
        0: [map_of_used, 2 * layer],
        1: [2 * layer],
        2: [map_of_used, 2 * layer],
        3: [map_of_used, 3 * layer],
        4: [3 * layer],
        5: [2 * layer],
    }


def test_what_no_task_of_a_step_uses_is_neither_moved_nor_decayed(exchanged):
    training_pass = Heads()
    engine, before = (
        engine_of(training_pass),
        {name: value.clone() for name, value in training_pass.model.state_dict().items()},
    )
    for number in range(3):
        engine.step(number, [("a", torch.ones(2, 3, dtype=torch.float64))], MetricSums())
    moved = {name for name, value in training_pass.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"trunk.weight", "trunk.bias", "a.weight", "a.bias"}
    assert all(parameter not in engine.optimizer.state for parameter in training_pass.model["b"].parameters())


def test_a_parameter_that_another_rank_uses_takes_part_with_zeros(monkeypatch):
    """The other rank has a gradient of every parameter, this one of none."""
    training_pass, sent = Heads(), []

    def add_other(values, **_):
        sent.append(values.clone())
        values.add_(1)

    monkeypatch.setattr(dist, "all_reduce", add_other)
    used = UsedParameters(training_pass.model, TWO)
    for _ in range(2):
        training_pass.model.zero_grad()
        used.all_reduce(frozenset({"a"}))
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in training_pass.model.parameters())
    assert [len(values) for values in sent] == [6, 36, 36] and not any(values.any() for values in sent)


def test_a_gradient_that_was_on_no_rank_in_the_first_step_is_an_error(exchanged):
    training_pass = Heads()
    used, x = UsedParameters(training_pass.model, TWO), torch.ones(2, 3, dtype=torch.float64)
    training_pass(("a", x))[0].backward()
    used.all_reduce(frozenset({"a"}))
    training_pass(("b", x))[0].backward()
    with pytest.raises(RuntimeError, match="a: a step uses parameters that the first step did not use"):
        used.all_reduce(frozenset({"a"}))


@pytest.mark.parametrize("name", ["cuda:1", "cpu"])
def test_gpus_are_named_and_nccl_waits_for_ten_minutes(monkeypatch, name):
    """gloo waits for an hour: the first rank may have much to do alone. A gloo group of one stands in for both."""
    given, timeouts, device, plain_init = {}, {}, torch.device(name), dist.init_process_group

    def init(backend, **more):
        given.update(more, backend=backend)
        plain_init("gloo", store=dist.HashStore(), rank=0, world_size=1)

    class Backend:
        def __init__(self, device):
            self.device = device

        def _set_default_timeout(self, timeout):
            timeouts[self.device] = timeout

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(distributed, "_unused", lambda store, rank, count: store)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist.ProcessGroup, "_get_backend", lambda group, device: Backend(device))
    with connected(TWO, device):
        pass
    assert given["timeout"] == datetime.timedelta(hours=1)
    if name == "cpu":
        assert (given["backend"], given["device_id"], timeouts) == ("gloo", None, {})
    else:
        assert (given["backend"], given["device_id"]) == ("cpu:gloo,cuda:nccl", device)
        assert timeouts == {device: datetime.timedelta(minutes=10)}


def test_a_rank_that_waits_for_others_says_so_and_gives_up(monkeypatch, capsys):
    """A whole launch that an earlier job left in the environment: nobody else is coming."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", datetime.timedelta(seconds=2))
    monkeypatch.setattr(distributed, "NOTICE_AFTER", 0.2)
    message = r"timed out waiting for 1 of 2 ranks|timed out after 0:00:02"
    with pytest.raises(UserError, match=message), connected(TWO, CPU):
        pass
    said = capsys.readouterr().err
    assert "rank 0 of 2 is waiting at 127.0.0.1:" in said and "unset RANK" in said
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="timed out after 0:00:02"), connected(Ranks(1, 2), CPU):
        pass
