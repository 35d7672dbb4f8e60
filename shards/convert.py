"""python -m shards.convert SOURCE --out DIR: converts published region features to region shards."""

from shards.common.cli import command
from shards.config import ConvertConfig
from shards.creation.conversion import convert


def run(config: ConvertConfig) -> None:
    convert(config)


EXAMPLES = ("python -m shards.convert trainval_36/ --out data/regions/coco",)


if __name__ == "__main__":
    command(
        ConvertConfig, run, "shards.convert", "Convert published region features to region shards.", examples=EXAMPLES
    )
