"""The README's commands: what `make demo` makes, what the others make, and that neither is in the other's way."""

import importlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import free_port, python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TRAINING = {"pretrain.run": "runs/pretrain", "finetune.mt": "runs/mt", "finetune.st": "runs/st-{task}"}
DEMO = [
    shlex.split(line) for line in re.findall(r"^\t\$\(BIN\)/(python -m .*)$", MAKEFILE, re.MULTILINE) if "--out" in line
]
NEXT = (
    re.search(r"^define NEXT\n(.*?)^endef", MAKEFILE, re.MULTILINE | re.DOTALL).group(1).replace("$(BIN)", ".venv/bin")
)
NEXT = NEXT[NEXT.index(". .venv") :].strip()
BLOCKS = [block for block in re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "python -m" in block]


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block that is typed in full."""
    lines = (line.partition("  #")[0] for line in block.splitlines() if "python -m" in line and "..." not in line)
    return [shlex.split(line)[shlex.split(line).index("-m") - 1 :] for line in lines]


def flag(words: list[str], name: str) -> str | None:
    return words[words.index(f"--{name}") + 1] if f"--{name}" in words else None


def made(words: list[str]) -> str | None:
    """The run directory that a training command makes."""
    default = TRAINING.get(words[2])
    return flag(words, "out") or default.format(task=flag(words, "task")) if default else None


def read(words: list[str]) -> set[str]:
    """The run directories that a command needs."""
    return {run for name in ("run", "init", "grounding") if (run := flag(words, name))}


def test_the_readme_has_the_lines_that_make_demo_ends_with():
    assert NEXT in BLOCKS[0] and BLOCKS[0].strip() == NEXT and len(commands(NEXT)) == 3
    for path in re.findall(r"runs/[\w/-]+", NEXT):
        assert path == "runs/demo" or path in {made(words) for words in DEMO}
    assert {made(words) for words in DEMO} == {"runs/demo/pretrain", "runs/demo/mt", "runs/demo/st-refcoco"}


def test_every_run_that_a_command_reads_is_made_by_an_earlier_one():
    assert TRAINING["finetune.mt"] == importlib.import_module("finetune.config").MtConfig.out
    assert TRAINING["pretrain.run"] == importlib.import_module("pretrain.config").PretrainConfig.out
    for sequence in (DEMO + commands(BLOCKS[0]), [words for block in BLOCKS[1:] for words in commands(block)]):
        exist: set[str] = set()
        for words in sequence:
            assert read(words) <= exist, words
            if run := made(words):
                assert run not in exist, f"{' '.join(words)}: an earlier command has made {run}"
                exist.add(run)
    assert set(re.findall(r'Predictor\("(.*?)"\)', README)) <= exist


def test_demo_and_default_runs_touch_none_of_each_other():
    demo = {made(words) for words in DEMO}
    others = {run for block in BLOCKS[1:] for words in commands(block) if (run := made(words))}
    assert not demo & others and not any(run.startswith("runs/demo") for run in others)
    assert all(read(words) <= demo for words in DEMO + commands(BLOCKS[0]))


SHORT = {
    "pretrain.run": ("--epochs", "1", "--workers", "0"),
    "finetune.mt": ("--iterations", "2", "--workers", "0", "--validate_on", "10"),
    "finetune.st": ("--epochs", "1", "--workers", "0"),
}


def run_words(words: list[str], cwd: Path) -> None:
    """Runs a command of the README, training shortened; of the live page until it is there."""
    words = [word for n, word in enumerate(words) if not {word, *words[n - 1 : n]} & {"--epochs", "--iterations"}]
    argv = [sys.executable, *words[1:], *SHORT.get(words[2], ())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if words[2] != "finetune.demo":
        done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        return
    port = ("--port", str(free_port()))
    page = subprocess.Popen([*argv, *port], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout.readline().startswith("http://"), words
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(30)
        page.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("demo_first", [True, False])
def test_every_command_works_with_demo_and_default_runs(tmp_path, demo_first):
    sizes = ("--pairs", 60, "--examples", 80, "--evaluation", 20, "--one_in", 100000)
    assert python("shards.world", "--out", tmp_path / "data" / "world", *sizes).returncode == 0
    default = [words for words in commands(BLOCKS[1]) if words[1] == "-m" and words[2] != "venv"]
    default = [words for words in default if words[2].startswith(("pretrain", "finetune"))]
    parts = [DEMO + commands(BLOCKS[0]), default]
    for words in itertools.chain(*(parts if demo_first else parts[::-1])):
        run_words(words, tmp_path)
    for words in commands(BLOCKS[0]) + default[3:]:  # once more, now that all runs are there
        run_words(words, tmp_path)
    predictor = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", predictor], cwd=tmp_path, env=environment, check=True, capture_output=True)
