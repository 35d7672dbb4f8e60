"""Run metadata: versions, commit and hardware, recorded in config.json."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

from ops.own_packages import own_version
from shards.common.dist_info import launched


def run_metadata(device: torch.device) -> dict:
    """Start time, versions and hardware of a run. commit: None if the code is not in a git checkout."""
    return {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": own_version(),
        "commit": commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": None if device.type == "cuda" else torch.get_num_threads(),
        "ranks": launched().count,
    }


def commit(folder: Path) -> str | None:
    """The commit checked out in a folder, followed by a + if files were changed since."""
    if not (folder / ".git").exists():  # installed, possibly inside the checkout of another project
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The name of the processor and the number of cores of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names and names[0] else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
