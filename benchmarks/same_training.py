"""python benchmarks/same_training.py --before COMMIT: whether a change of the code changes any number of training.

The same short training (pretraining, all twelve tasks, one task alone) at two commits, on this machine, and every
parameter and every logged loss and score compared bit for bit. Digests are not stored: another processor rounds
otherwise. The world is made once, by the earlier commit.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import fire
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
WORLD = ("--pairs", "60", "--examples", "60", "--evaluation", "20")
TRAINING = {
    "pretrain": ("pretrain.run", "--epochs", "1", "--batch_size", "20"),
    "mt": ("finetune.mt", "--init", "pretrain", "--iterations", "4"),
    "st-refcoco": ("finetune.st", "--task", "refcoco", "--init", "mt", "--epochs", "1"),
    "st-vqa": ("finetune.st", "--task", "vqa", "--init", "pretrain", "--epochs", "1"),
}
# Times, speeds and memory, which differ between runs.
MEASURED = ("time", "seconds", "samples_per_second", "data_wait_share", "memory_gb")


def run(code: Path, folder: Path, *command: str) -> None:
    environment = {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def checked_out(commit: str, folder: Path) -> Path:
    """The repository at a commit, with its operators built."""
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", folder, commit], check=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def trained(code: Path, folder: Path, world: Path) -> Path:
    folder.mkdir()
    for name, (module, *flags) in TRAINING.items():
        run(code, folder, module, "--data", str(world), "--out", name, "--workers", "0", "--log_every", "1", *flags)
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("*/*.safetensors"), key=lambda path: path.parent.name)
    return load_file(newest)


def values_of(run: Path) -> list[dict]:
    """The logged losses and scores."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.endswith(MEASURED)} for line in lines]


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two runs: names of parameters, and of values in metrics.jsonl with their line."""
    first, second = weights_of(before), weights_of(after)
    found = [name for name in first.keys() | second.keys() if name not in first or name not in second]
    found += [name for name in first.keys() & second.keys() if not torch.equal(first[name], second[name])]
    lines = zip(values_of(before), values_of(after), strict=True)
    for number, (one, other) in enumerate(lines, 1):
        found += [f"{name} in line {number}" for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return sorted(found)


@fire.decorators.SetParseFns(before=str, after=str)  # fire takes 488e270 for a number
def main(before: str, after: str = "HEAD") -> None:
    """Compares training at two commits.

    Args:
        before: the earlier commit.
        after: the later commit.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, commits = Path(temporary), {"before": before, "after": after}
        try:
            code = {name: checked_out(commit, folder / f"code-{name}") for name, commit in commits.items()}
            run(code["before"], folder, "shards.world", "--out", "world", *WORLD)
            runs = {name: trained(code[name], folder / name, folder / "world") for name in code}
            changed = False
            for name in TRAINING:
                parameters = len(weights_of(runs["before"] / name))
                values = sum(map(len, values_of(runs["before"] / name)))
                different = differences(runs["before"] / name, runs["after"] / name)
                changed |= bool(different)
                found = f"{len(different)} differ, such as {', '.join(different[:3])}" if different else "all the same"
                print(f"{name:<12} {parameters} tensors of parameters, {values} logged values: {found}", flush=True)
        finally:
            for name in commits:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder / f"code-{name}"])
    sys.exit(int(changed))


if __name__ == "__main__":
    fire.Fire(main)
