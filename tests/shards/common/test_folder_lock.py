"""One command at a time writes a folder, and the next one says which that is."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from launching import run_ranks
from PIL import Image

from shards.common.errors import UserError
from shards.common.folder_lock import LOCK, FolderLock, locked_folder
from shards.storage.dataset import open_dataset

HOLDER = """
import os, sys, time
from shards.common.folder_lock import FolderLock
lock = FolderLock(sys.argv[1], "pretrain.run")
lock.acquire()
if not os.fork():  # as data workers are
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of a folder, and a child that it forked: start(FOLDER) -> (process, child's id)."""
    started = []

    def start(folder) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append((process, int(process.stdout.readline())))
        return started[-1]

    yield start
    for process, child in started:
        process.kill()
        process.wait()
        os.kill(child, 9)


def test_the_second_process_reports_the_first_in_one_sentence(tmp_path, holder):
    process, _ = holder(tmp_path / "out")
    with pytest.raises(UserError) as refused:
        FolderLock(tmp_path / "out", "finetune.mt").acquire()
    sentence = str(refused.value)
    owner = rf"pretrain\.run \(process {process.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d "
    assert re.search(owner, sentence) and "\n" not in sentence
    assert sentence.startswith(f"{tmp_path / 'out'}: ") and "use another one" in sentence


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    process, child = holder(tmp_path / "out")
    process.kill()
    process.wait()
    assert (tmp_path / "out" / LOCK).exists() and os.path.exists(f"/proc/{child}")
    with locked_folder(tmp_path / "out", "finetune.mt"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["process"] == os.getpid()


def test_a_lock_leaves_nothing_and_removes_what_killed_writers_left(tmp_path):
    with locked_folder(tmp_path / "a" / "b", "shards.extract"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out" / "checkpoints" / ".step-00000003.77.part").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / ".step-00000003.77.part" / "model.safetensors").touch()
    (tmp_path / "out" / ".config.json.4242.part").touch()
    (tmp_path / "out" / "config.json").touch()
    lock = FolderLock(tmp_path / "out", "pretrain.run", ("checkpoints",))
    lock.acquire()
    lock.release()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["out", "out/checkpoints", "out/config.json"]


def images_and_source(folder) -> None:
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * number, np.uint8)).save(folder / "images" / f"{number}.png")
    features = {"features": np.ones((2, 3), np.float32), "bbox": np.array([[0, 0, 9, 9], [1, 1, 8, 8]], np.float32)}
    (folder / "npy").mkdir()
    np.save(folder / "npy" / "1.npy", features | {"num_boxes": 2, "image_height": 40, "image_width": 40})


COMMANDS = {
    "shards.extract": ("images", "--out", "out"),
    "shards.convert": ("npy", "--out", "out"),
    "shards.world": ("--out", "out"),
    "pretrain.run": ("--data", "nowhere", "--out", "out"),
    "finetune.mt": ("--data", "nowhere", "--out", "out"),
    "finetune.st": ("--task", "refcoco", "--data", "nowhere", "--out", "out"),
    "finetune.clean": ("--data", "images", "--out", "out"),
    "finetune.consistency": ("--run", "npy", "--data", "nowhere", "--out", "out"),
    "finetune.examples": ("--run", "npy", "--data", "nowhere", "--out", "page.html"),
    "finetune.ablate": ("--suite", "table11", "--data", "nowhere", "--out", "runs"),
}
FOLDERS = {"finetune.examples": "page-attention", "finetune.ablate": "runs/table11"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_writes_a_folder_takes_its_lock(tmp_path, monkeypatch, run_command, name):
    images_and_source(tmp_path)
    monkeypatch.chdir(tmp_path)
    with locked_folder(FOLDERS.get(name, "out"), "pretrain.run"):
        status, _, err = run_command(name, *COMMANDS[name])
    assert status == 2 and f"pretrain.run (process {os.getpid()} on " in err and err.count("\n") == 1
    assert not (tmp_path / FOLDERS.get(name, "out")).exists()


def test_a_conversion_of_weights_takes_the_lock_of_its_run(tmp_path, monkeypatch, run_command, parity):
    from pathlib import Path

    weights = Path(__file__).parents[2] / "parity"
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    flags = [weights / "pretrain_weights.safetensors", "--config", weights / "config.json", "--out", tmp_path / "out"]
    with locked_folder(tmp_path / "out", "pretrain.run"):
        status, _, err = run_command("pretrain.convert", *flags)
    assert status == 2 and "pretrain.run (process " in err


def test_two_extractions_into_one_folder(tmp_path):
    """Without a lock one ended, and the other waited for ever for notes that the first had taken away."""
    images_and_source(tmp_path)
    command = [sys.executable, "-m", "shards.extract", tmp_path / "images", "--out", tmp_path / "out"]
    command = [*map(str, command), "--processes", "1", "--visual_words", "4", "--per_shard", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **pipes)
    try:
        until = time.time() + 60
        while not (tmp_path / "out" / "unfinished.json").exists():
            assert time.time() < until and first.poll() is None
            time.sleep(0.01)
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert first.wait(60) == 0, first.communicate()
    finally:
        first.kill()
    assert second.returncode == 2 and f"shards.extract (process {first.pid} on " in second.stderr
    assert len(open_dataset(str(tmp_path / "out"))) == 4


def test_ranks_extract_into_one_folder(tmp_path):
    """The first has the lock; the other waits until it has."""
    images_and_source(tmp_path)
    flags = [tmp_path / "images", "--out", tmp_path / "out", "--processes", 1, "--visual_words", 4, "--per_shard", 1]
    results = run_ranks(2, *flags, script=("-m", "shards.extract"))
    assert [status for status, _, _ in results] == [0, 0], results
    assert len(open_dataset(str(tmp_path / "out"))) == 4 and not (tmp_path / "out" / LOCK).exists()


def test_a_process_that_waits_names_the_other_and_gets_the_lock_when_that_ends(tmp_path, holder, monkeypatch, capfd):
    monkeypatch.setattr("shards.common.folder_lock.NOTICE_AFTER", 0.1)
    process, _ = holder(tmp_path / "out")
    ending = threading.Timer(0.6, process.kill)
    ending.start()
    began, lock = time.monotonic(), FolderLock(tmp_path / "out", "finetune.prepare")
    lock.acquire(wait=True)
    assert time.monotonic() - began > 0.5
    notices = capfd.readouterr().err.splitlines()
    assert len(notices) == 1
    assert notices[0].startswith(f"{tmp_path / 'out'}: waiting for pretrain.run (process {process.pid} on ")
    with pytest.raises(UserError, match=r"finetune\.prepare \(process"):
        FolderLock(tmp_path / "out", "finetune.mt").acquire()
    lock.release()
