"""A small world, made once for the tests of fine-tuning, and a short pretraining run on it."""

import pytest
from launching import python

SIZES = ("--pairs", "60", "--examples", "80", "--evaluation", "20", "--one_in", "100000")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    done = python("shards.world", "--out", folder, *SIZES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def pretrained(world):
    run = world.parent / "pretrained"
    done = python("pretrain.run", "--data", world, "--out", run, "--epochs", 1, "--workers", 0, "--batch_size", 20)
    assert done.returncode == 0, done.stderr
    return run
