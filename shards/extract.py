"""python -m shards.extract IMAGES --out DIR: extracts regions of images, with or without captions, to region shards."""

from shards.common.cli import command
from shards.common.dist_info import launched
from shards.config import ExtractConfig
from shards.creation.extraction import extract


def run(config: ExtractConfig) -> None:
    extract(config, launched())


if __name__ == "__main__":
    command(ExtractConfig, run, "shards.extract", "Extract regions of images to region shards.")
