"""python -m pretrain.run (or another module, by the first argument) with a fault in it, which the environment says.

SABOTAGE: kill_in_step, kill_in_save, or stop_after (Ctrl-C after a step); SABOTAGE_AT: the step (kill_in_step: counted
from where the process began); SABOTAGE_RANK: the rank; SABOTAGE_ONCE: a file that says that it has happened, so that
a restarted process is left alone.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

del sys.path[0]  # this folder, where tests/ops stands in the way of ops

import pretrain.engine.checkpoint  # noqa: E402
from pretrain.engine.step import Engine  # noqa: E402


def strike() -> None:
    Path(os.environ["SABOTAGE_ONCE"]).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def install() -> None:
    at, plain_update, plain_save = int(os.environ["SABOTAGE_AT"]), Engine._update, pretrain.engine.checkpoint.save_file
    updates = []

    def update(engine):
        updates.append(1)
        if len(updates) == at:
            strike()
        return plain_update(engine)

    plain_public_update, stopped = Engine.update, []

    def stop_after(engine, number, *rest):
        plain_public_update(engine, number, *rest)
        if number + 1 == at and not stopped:  # the first optimizer step of an iteration on several tasks
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    def save(tensors, path):
        plain_save(tensors, path)
        if f"step-{at:08d}" in str(path) and str(path).endswith("model.safetensors"):
            strike()

    if os.environ["SABOTAGE"] == "kill_in_step":
        Engine._update = update
    elif os.environ["SABOTAGE"] == "stop_after":
        Engine.update = stop_after
    else:
        pretrain.engine.checkpoint.save_file = save


if os.environ["RANK"] == os.environ["SABOTAGE_RANK"] and not Path(os.environ["SABOTAGE_ONCE"]).exists():
    install()
name = sys.argv.pop(1) if sys.argv[1].startswith("finetune.") else "pretrain.run"
sys.argv[0] = name
runpy.run_module(name, run_name="__main__", alter_sys=True)
