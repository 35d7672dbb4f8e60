"""twelve-in-one COMMAND, or python -m finetune COMMAND: runs any command of the toolkit."""

import runpy
import signal
import sys

# Group -> {name: (module, summary)}.
GROUPS = {
    "data": {
        "extract": ("shards.extract", "images (with captions) to region shards"),
        "convert": ("shards.convert", "published features to region shards"),
        "inspect": ("shards.inspect", "contents of region shards"),
        "given-boxes": ("finetune.given_boxes", "boxes of the tasks' annotations, for extract"),
        "world": ("shards.world", "the miniature world, a synthetic data set"),
        "prepare": ("finetune.prepare", "official files of tasks, read once for all later commands"),
        "doctor": ("finetune.doctor", "check of a data folder: files and regions per task"),
        "clean": ("finetune.clean", "decontamination: test images in training data (Clean V&L)"),
    },
    "training": {
        "pretrain": ("pretrain.run", "pretraining on image-caption pairs"),
        "mt": ("finetune.mt", "multi-task training"),
        "st": ("finetune.st", "single-task fine-tuning"),
        "ablate": ("finetune.ablate", "the paper's ablations, with several seeds and intervals"),
    },
    "evaluation": {
        "evaluate": ("finetune.evaluate", "scores and submission files of a run"),
        "consistency": ("finetune.consistency", "grounding consistency of answers (MT-VGC)"),
        "interference": ("finetune.interference", "which tasks help or harm each other in training"),
        "predict": ("finetune.predict", "prediction for an image file and a text"),
        "embed": ("finetune.embed", "embeddings of images and texts, also as a page"),
        "report": ("finetune.report", "tables and figures of runs"),
        "examples": ("finetune.examples", "page of correct and wrong predictions, of one run or two"),
        "attention": ("finetune.attention", "page of attention maps"),
        "demo": ("finetune.demo", "web demo"),
    },
    "other": {
        "share": ("finetune.share", "a run as one folder to publish, with a model card"),
        "export": ("pretrain.convert", "weights to and from other formats"),
        "ops": ("ops", "versions, and a self-check of the compiled operators"),
    },
}


def overview() -> str:
    """The text of --help: all commands by group."""
    lines = ["twelve-in-one COMMAND [--FLAG VALUE ...]; twelve-in-one COMMAND --help lists a command's flags", ""]
    for group, commands in GROUPS.items():
        lines += [group.capitalize()]
        lines += [f"  {name:<13}{summary} (python -m {module})" for name, (module, summary) in commands.items()]
        lines += [""]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Runs the command that the first argument names, as `python -m` would. Returns 2 for an unknown command."""
    commands = {name: module for group in GROUPS.values() for name, (module, _) in group.items()}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:  # of `| head`
            sys.stderr.close()
            return 128 + signal.SIGPIPE
        return 0
    if name == "--version":
        from ops.own_packages import DISTRIBUTION, own_version  # here, because ops imports torch

        print(f"{DISTRIBUTION} {own_version() or '(not installed)'}")
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
