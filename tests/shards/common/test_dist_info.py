"""What the environment says of a launch, whole, half and wrong."""

import pytest

from shards.common.dist_info import ALONE, Ranks, launched
from shards.common.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def put(values: dict) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "values", [{}, {"RANK": "", "WORLD_SIZE": ""}, {"MASTER_ADDR": "node-0"}, {"LOCAL_RANK": "3"}], ids=str
)
def test_a_process_that_nothing_launched_is_alone(environment, values):
    environment(values)
    assert launched() == ALONE


def test_a_launch_is_read_whole(environment):
    environment(WHOLE)
    assert launched() == Ranks(1, 2, 1)
    environment({"RANK": "0", "WORLD_SIZE": "1"})
    assert launched() == ALONE


HALF = [
    ({"RANK": "0"}, "RANK is set in the environment, but WORLD_SIZE is not"),
    ({"WORLD_SIZE": "2", "RANK": ""}, "WORLD_SIZE is set in the environment, but RANK is not"),
    (WHOLE | {"MASTER_ADDR": ""}, "WORLD_SIZE=2 is set in the environment, but MASTER_ADDR is not"),
    (WHOLE | {"MASTER_PORT": ""}, "MASTER_PORT is not"),
    (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT=http in the environment: must be an integer"),
    (WHOLE | {"RANK": "two"}, "RANK=two in the environment: must be an integer"),
    (WHOLE | {"RANK": "2"}, "RANK=2 WORLD_SIZE=2 LOCAL_RANK=1 in the environment: invalid rank"),
    (WHOLE | {"WORLD_SIZE": "0"}, "invalid rank"),
]


@pytest.mark.parametrize(("values", "sentence"), HALF, ids=str)
def test_a_half_set_launch_is_one_sentence(environment, values, sentence):
    environment(values)
    with pytest.raises(UserError) as refused:
        launched()
    assert sentence in str(refused.value) and "unset RANK" in str(refused.value)


COMMANDS = {
    "pretrain.run": ("--data", "nowhere", "--out", "out"),
    "finetune.mt": ("--data", "nowhere", "--out", "out"),
    "finetune.st": ("--task", "refcoco", "--data", "nowhere", "--out", "out"),
    "finetune.evaluate": ("--run", "nowhere", "--data", "nowhere"),
    "finetune.ablate": ("--suite", "table11", "--out", "out"),
    "shards.extract": ("nowhere", "--out", "out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_takes_ranks_refuses_half_a_launch(environment, tmp_path, monkeypatch, run_command, name):
    monkeypatch.chdir(tmp_path)
    environment({"WORLD_SIZE": "2"})
    status, _, err = run_command(name, *COMMANDS[name])
    assert status == 2 and err.startswith("error: WORLD_SIZE is set") and err.count("\n") == 1
