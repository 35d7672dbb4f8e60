"""What a run says of its making: true of this process, and silent where there is nothing to say."""

import subprocess

import torch

from pretrain.engine.run_metadata import commit, run_metadata


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)


def test_versions_and_hardware():
    made = run_metadata(torch.device("cpu"))
    assert made["torch"] == torch.__version__ and made["ranks"] == 1 and made["threads"] == torch.get_num_threads()
    assert made["began"].endswith("+00:00") and "cores" in made["device"]


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path):
    assert commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    assert git(tmp_path, "rev-parse", "HEAD").stdout.startswith(commit(tmp_path))
    (tmp_path / "a.py").write_text("a = 2\n")
    assert commit(tmp_path).endswith("+")
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None  # of an installed package in somebody's project
