"""python -m shards.world --out data/world: creates the miniature world, with annotations and region shards."""

from shards.common.cli import command
from shards.world.creation import WorldConfig, make_world


def run(config: WorldConfig) -> None:
    print(f"miniature world: {make_world(config)}")


EXAMPLES = ("python -m shards.world --out data/world",)


if __name__ == "__main__":
    summary = "Create the miniature world: synthetic images, captions, annotations of the twelve tasks, and regions."
    command(WorldConfig, run, "shards.world", summary, examples=EXAMPLES)
