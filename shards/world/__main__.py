"""python -m shards.world --out data/world: the miniature world, drawn, annotated and extracted."""

from shards.flags import command
from shards.world import WorldConfig, make_world


def run(config: WorldConfig) -> None:
    print(f"the world is in {make_world(config)}")


if __name__ == "__main__":
    summary = "The miniature world: drawn images with captions, the twelve tasks' annotations, and regions."
    command(WorldConfig, run, "shards.world", summary)
