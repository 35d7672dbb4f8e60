"""What a GPU does, as far as a CPU can play it: attention on packed rows, and graphs that run the function again.

As a script: python -m MODULE, by the first argument where it is a module of finetune, else pretrain.run.
"""

import runpy
import sys


def install(replace=setattr) -> None:
    """replace: called with an object, a name and the new value, as setattr."""
    import pretrain.engine.cuda_graph
    import pretrain.models.packing

    replace(pretrain.models.packing, "runs_on", lambda device: True)
    replace(pretrain.engine.cuda_graph, "runs_on", lambda device: True)
    replace(pretrain.engine.cuda_graph, "capture", lambda function: function)


if __name__ == "__main__":
    del sys.path[0]  # this folder, where tests/ops stands in the way of ops
    install()
    name = sys.argv.pop(1) if sys.argv[1].startswith("finetune.") else "pretrain.run"
    sys.argv[0] = name
    runpy.run_module(name, run_name="__main__", alter_sys=True)
