"""CUDA graphs as far as a CPU can play them: a capture that runs the function again, and attention on packed rows.

As a script: python -m pretrain.run with such graphs.
"""

import runpy
import sys


def install(replace=setattr) -> None:
    """replace: called with an object, a name and the new value, as setattr."""
    import pretrain.cuda_graph
    import pretrain.packing

    replace(pretrain.packing, "runs_on", lambda device: True)
    replace(pretrain.cuda_graph, "runs_on", lambda device: True)
    replace(pretrain.cuda_graph, "capture", lambda function: function)


if __name__ == "__main__":
    del sys.path[0]  # this folder, where tests/ops stands in the way of ops
    install()
    sys.argv[0] = "pretrain.run"
    runpy.run_module("pretrain.run", run_name="__main__", alter_sys=True)
