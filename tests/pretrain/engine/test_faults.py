"""Faults of the machine in the middle of a run: a full disk, data workers that die, a file that is cut short."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fork_server
import pytest
import torch
from data_sets import make_dataset
from fork_server import ForkedProcess
from launching import python

from pretrain.data.dataloader import Loader, WorkerStatus, check_workers
from pretrain.engine.checkpoint import checkpoints
from shards.common.errors import UserError
from shards.storage.dataset import open_dataset

SMALL = ["--batch_size", 8, "--log_every", 1, "--validation_pairs", 9]


def start(*arguments) -> ForkedProcess:
    return fork_server.start("-m", "pretrain.run", *arguments)


@contextlib.contextmanager
def training(run: Path, *arguments):
    """A run that is in the middle of its steps; whatever happens it does not outlive the block."""
    process = start("--out", run, "--epochs", 100000, *SMALL, *arguments)
    try:
        until = time.time() + 120
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None and time.time() < until, process.communicate()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()


def ended(process: ForkedProcess | subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=180)
    return process.returncode, err


def descendants(pid: int) -> list[int]:
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [one for child in children for one in (child, *descendants(child))]


def workers_of(process: ForkedProcess, folder: Path) -> list[int]:
    """Those of its processes that read shards of a folder, whichever process started them."""
    return [pid for pid in descendants(process.pid) if str(folder) in Path(f"/proc/{pid}/maps").read_text()]


class BlockedSignals(torch.utils.data.Dataset):
    """One sample: the signals that are blocked in the worker that reads it."""

    def __getitem__(self, number: int) -> list[int]:
        return [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())]


def test_data_workers_never_receive_an_interrupt():
    """Between their start and their first line of ours they would print a traceback."""
    assert list(Loader(BlockedSignals(), 1, WorkerStatus(1), sampler=[0])) == [[signal.SIGINT]]
    assert BlockedSignals()[0] == []


def test_a_data_worker_that_is_killed_is_reported_with_its_shard(dataset_folder, tmp_path):
    with training(tmp_path / "run", "--data", dataset_folder, "--workers", 2) as process:
        victim = workers_of(process, dataset_folder)[0]
        os.kill(victim, signal.SIGKILL)
        status, err = ended(process)
    assert status == 2 and "Traceback" not in err
    # torch notices by the signal, or by the exit, whichever is first.
    assert re.search(rf"a data worker (was killed \(Killed\)|died) while reading {dataset_folder}/part-0000", err)


def test_a_connection_that_breaks_with_a_worker_is_told_from_any_other(dataset_folder):
    """What comes before torch has noticed, where the worker ends while a batch is being fetched from it."""
    status = WorkerStatus(1, open_dataset(str(dataset_folder)))
    worker = multiprocessing.Process(target=time.sleep, args=(100,), daemon=True)
    worker.start()
    status.table[0] = torch.tensor([worker.pid, 1])
    with pytest.raises(ConnectionResetError), check_workers(status):
        raise ConnectionResetError
    worker.kill()
    with pytest.raises(UserError, match=r"a data worker died while reading .*part-00001\.tar"), check_workers(status):
        raise ConnectionResetError


def test_a_shard_that_is_cut_short_under_the_run_is_named(dataset_folder, tmp_path):
    with training(tmp_path / "run", "--data", dataset_folder, "--workers", 1) as process:
        for shard in dataset_folder.glob("*.tar"):
            os.truncate(shard, 512)
        status, err = ended(process)
    assert status == 2 and "Traceback" not in err
    # A shard that is mapped already kills its reader; one that was not yet is found to be too short.
    assert (
        re.search(r"a data worker (was killed \(Bus error|died).*the file may be truncated", err) or "truncated;" in err
    )
    assert f"{dataset_folder}/part-0000" in err


def test_a_run_that_fails_leaves_no_worker_behind_and_ends(dataset_folder, tmp_path):
    """What is wrong is found by one of three workers while the others are at work."""
    from shards.storage.index import load_index

    index = load_index(dataset_folder / "part-00001.tar")
    with open(dataset_folder / "part-00001.tar", "r+b") as file:
        file.seek(int(index.members[30, 0, 0]))
        file.write(b"damaged!")
    flags = ("--data", dataset_folder, "--out", tmp_path / "run", "--workers", 3, *SMALL, "--epochs", 50)
    command = [sys.executable, "-m", "pretrain.run", *map(str, flags)]  # which /proc has, as of its workers
    status, err = ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert status == 2 and "part-00001.tar: k1_00030.features.npy" in err
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in read_or_nothing(p)]


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for one checkpoint and not for two: mount(megabytes) -> its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes: float) -> Path:
        size = f"size={int(megabytes * 1e6)}"
        options = f"remount,{size}" if os.path.ismount(folder) else size
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("a small disk can be mounted by root alone")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_more_room_lets_the_run_go_on(tmp_path, small_disk):
    make_dataset(tmp_path / "data", (60, 37))
    flags = ["--data", tmp_path / "data", "--save_every", 3, "--workers", 0, "--epochs", 1, *SMALL]
    assert ended(start(*flags, "--out", tmp_path / "whole"))[0] == 0
    needed = sum(file.stat().st_size for file in checkpoints(tmp_path / "whole")[-1].iterdir()) / 1e6
    run = small_disk(1.5 * needed) / "run"
    status, err = ended(start(*flags, "--out", run))
    assert status == 2 and "Traceback" not in err
    assert "step-00000006: the checkpoint could not be written (" in err and "No space left on device" in err
    assert "free disk space and use --resume to continue from step-00000003" in err
    assert [path.name for path in checkpoints(run)] == ["step-00000003"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    small_disk(4 * needed)
    assert ended(start("--out", run, "--resume"))[0] == 0
    scores = [json.loads((folder / "result.json").read_text())["validation"] for folder in (run, tmp_path / "whole")]
    assert scores[0] == scores[1]


@pytest.fixture
def small_memory():
    """Runs a command where /dev/shm is small, as it is in a container: run(megabytes, command) -> the process."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a small /dev/shm can be mounted by root alone")

    def run(megabytes: int, *command) -> subprocess.CompletedProcess:
        mount = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, "sh", *map(str, command)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.parametrize("sharing", ["descriptors", pytest.param("files", marks=pytest.mark.slow)])
def test_a_small_shared_memory_is_one_sentence_and_no_workers_need_none(tmp_path, small_memory, sharing):
    make_dataset(tmp_path / "data", (24, 16), features=20_000)  # a batch of 8 pairs has about 2 MB
    flags = ["-m", "pretrain.run", "--data", tmp_path / "data", "--epochs", 1, *SMALL, "--batch_size", 16]
    limit = ["sh", "-c", f'ulimit -n {256 if sharing == "files" else 4096} && exec "$@"', "sh"]
    done = small_memory(1, *limit, sys.executable, *flags, "--out", tmp_path / "a", "--workers", 2)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for word in ("/dev/shm is full (1 MB)", "--workers 0", "docker run --shm-size"):
        assert word in done.stderr
    if sharing == "files":
        done = small_memory(1, *limit, sys.executable, *flags, "--out", tmp_path / "b", "--workers", 0)
        assert done.returncode == 0, done.stderr


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def limited(descriptors: int, *command) -> tuple[int, str]:
    """(status, stderr) of a command that may have so many file descriptors."""
    return ended(fork_server.start("-c", LIMITED, descriptors, *command))


def test_more_shards_than_file_descriptors(tmp_path):
    make_dataset(tmp_path / "data", (2,) * 300)
    flags = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--workers", 2, "--epochs", 3, *SMALL]
    flags += ["--batch_size", 40]
    status, err = limited(256, "pretrain.run", *flags)
    assert status == 0, err


def test_too_few_descriptors_for_the_workers_are_one_sentence(tmp_path, dataset_folder):
    flags = ["--data", dataset_folder, "--out", tmp_path / "run", "--workers", 24, "--epochs", 1, *SMALL]
    status, err = limited(64, "pretrain.run", *flags)
    assert status == 2 and "Traceback" not in err, err
    sentence = err.splitlines()[-1]  # torch warns of so many workers
    assert (
        "too many open files" in sentence
        and "the limit of this process is 64)" in sentence
        and "--workers 0" in sentence
    )


def test_every_file_that_a_full_disk_refuses_is_named(tmp_path, small_disk, dataset_folder):
    flags = ["--data", dataset_folder, "--workers", 0, "--epochs", 1, *SMALL]
    disk = small_disk(0.05)  # where not even the tokenizer has room, nor any weights
    status, err = ended(start(*flags, "--out", disk / "run"))
    assert status == 2 and "Traceback" not in err and err.count("\n") == 1
    assert re.match(rf"error: {disk}/run/\S+: (the checkpoint could not|cannot) be written \(.*No space left", err)
    assert ended(start(*flags, "--out", tmp_path / "run"))[0] == 0
    for name in ("w.bin", "w.safetensors"):
        done = python("pretrain.convert", tmp_path / "run", "--to", "published", "--out", disk / name)
        sentence = f"error: {disk / name}: cannot be written (No space left on device)\n"
        assert (done.returncode, done.stderr) == (2, sentence)
        assert not list(disk.glob(f".{name}*"))
