"""python -m shards.extract IMAGES --out DIR: extracts regions of images, with or without captions, to region shards."""

from shards.common.cli import command
from shards.common.dist_info import launched
from shards.config import ExtractConfig
from shards.creation.extraction import extract

PIXELS = (
    "the detector pixels proposes boxes by contrast and edges, without weights: enough for drawn images and first "
    "steps; for results on photographs set --detector to a trained one (docs/regions.md)"
)


def run(config: ExtractConfig) -> None:
    ranks = launched()
    if config.detector == "pixels" and not config.boxes:
        ranks.log(PIXELS)
    extract(config, ranks)


EXAMPLES = (
    "python -m shards.extract photos/ --out data/photos",
    "torchrun --standalone --nproc-per-node 8 -m shards.extract 'cc3m/*.tar' --out data/cc --detector MODEL",
)


if __name__ == "__main__":
    command(ExtractConfig, run, "shards.extract", "Extract regions of images to region shards.", examples=EXAMPLES)
