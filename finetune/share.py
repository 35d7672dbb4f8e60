"""python -m finetune.share RUN --out DIR: one folder with everything of a run that its users need, and a model card."""

from dataclasses import dataclass

from finetune.run_dirs.model_folder import write_model_folder
from shards.common.cli import REQUIRED, command, flag
from shards.common.model_hub import check_hub_name, upload


@dataclass
class ShareConfig:
    """Flags of finetune.share."""

    run: str = flag(REQUIRED, "run directory of finetune.mt, finetune.st or pretrain.run", first=True, model=True)
    out: str = flag(REQUIRED, "folder for the model", written=True)
    license: str | None = flag(None, "licence of the weights, such as mit or cc-by-4.0", unset="not stated")
    hub: str | None = flag(None, "OWNER/NAME on the Hugging Face hub to upload the folder to", unset="no upload")
    private: bool = flag(False, "make a new repository on the hub private")


def run(config: ShareConfig) -> None:
    if config.hub:
        check_hub_name(config.hub, "--hub ")
    out = write_model_folder(config.run, config.out, config.license)
    print(f"{out}: use it as --run {out} or --init {out}")
    if config.hub:
        print(f"{upload(out, config.hub, config.private)}: use it as --run hf:{config.hub} or --init hf:{config.hub}")


EXAMPLES = ("python -m finetune.share --run runs/mt --out shared/mt",)


if __name__ == "__main__":
    command(
        ShareConfig,
        run,
        "finetune.share",
        "Write a run as one folder to publish, with a model card.",
        examples=EXAMPLES,
    )
