"""twelve-in-one COMMAND, or python -m finetune COMMAND: every command of the toolkit under one name."""

import runpy
import sys

# Name -> (module, what it does), in groups.
GROUPS = {
    "data": {
        "extract": ("shards.extract", "images (with captions) to region shards"),
        "convert": ("shards.convert", "published features to region shards"),
        "inspect": ("shards.inspect", "what is in region shards"),
        "given-boxes": ("finetune.given_boxes", "the boxes that the tasks' annotations give"),
        "world": ("shards.world", "the miniature world, a synthetic data set"),
        "doctor": ("finetune.doctor", "which tasks a data folder is ready for"),
        "clean": ("finetune.clean", "find test images in training data (Clean V&L)"),
    },
    "training": {
        "pretrain": ("pretrain.run", "pretraining on image-caption pairs"),
        "mt": ("finetune.mt", "several tasks together"),
        "st": ("finetune.st", "one task"),
        "ablate": ("finetune.ablate", "the paper's ablations, with seeds and intervals"),
    },
    "evaluation": {
        "evaluate": ("finetune.evaluate", "scores and submissions of a run"),
        "consistency": ("finetune.consistency", "grounding consistency of answers (MT-VGC)"),
        "predict": ("finetune.predict", "one answer for one image and one text"),
        "report": ("finetune.report", "tables and figures of runs"),
        "examples": ("finetune.examples", "right and wrong predictions"),
        "attention": ("finetune.attention", "attention maps"),
        "demo": ("finetune.demo", "a live page"),
    },
    "other": {
        "export": ("pretrain.convert", "weights to and from other formats"),
        "ops": ("ops", "versions, compiled operators and their self-check"),
    },
}


def overview() -> str:
    lines = ["twelve-in-one COMMAND [--flag value ...]; twelve-in-one COMMAND --help lists a command's flags", ""]
    for group, commands in GROUPS.items():
        lines += [group.capitalize()]
        lines += [f"  {name:<13}{summary} (python -m {module})" for name, (module, summary) in commands.items()]
        lines += [""]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Runs the command that the first argument names, as `python -m` would. Returns 2 for an unknown one."""
    commands = {name: module for group in GROUPS.values() for name, (module, _) in group.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    module = commands.get(name) or (name if name in commands.values() else None)
    if module is None:
        print(f"twelve-in-one {name}: no such command; it should be one of {', '.join(commands)}", file=sys.stderr)
        return 2
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
