"""python -m shards.inspect DIR: summarises a data set and draws an image with its regions."""

from dataclasses import dataclass
from pathlib import Path

from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.images.draw_regions import draw
from shards.storage.dataset import checksum_errors, open_dataset
from shards.storage.describe_dataset import describe_dataset
from shards.storage.reader import RegionReader


@dataclass
class InspectConfig:
    """Flags of shards.inspect."""

    data: str = flag(REQUIRED, "folder of region shards, or a pattern of tars", first=True)
    image: str | None = flag(None, "id of the image to draw", unset="the first image")
    picture: str | None = flag(None, "output file for the picture", unset="DATA/inspect.png")
    check: bool = flag(False, "verify the checksum of every shard")


def run(config: InspectConfig) -> None:
    dataset = open_dataset(config.data)
    if config.check:
        errors = list(checksum_errors(dataset))
        if errors:
            raise UserError("; ".join(errors))
    reader = RegionReader(dataset)
    try:
        number = 0 if config.image is None else reader.number_of(config.image)
    except KeyError:
        first = reader[0].info.get("id", reader[0].key)
        raise UserError(f"--image {config.image}: no such image id in {config.data} (the first is {first})") from None
    print(describe_dataset(config.data, reader))
    if config.check:
        print(f"checksums   all {len(dataset.shards)} correct")
    sample = reader[number]
    image, line = draw(sample, dataset.folder, dataset.extra.get("class_names"))
    path = Path(config.picture or dataset.folder / "inspect.png")
    try:
        with whole_file(path) as file:
            image.save(file, "PNG")
    except OSError as error:
        if config.picture:
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); give the file for the picture by --picture"
        ) from None
    print(f"picture     {path}\n            {line}")
    for caption in sample.captions:
        print(f'            "{caption}"')


EXAMPLES = (
    "python -m shards.inspect data/photos",
    "python -m shards.inspect data/photos --check",
)


if __name__ == "__main__":
    command(
        InspectConfig,
        run,
        "shards.inspect",
        "Summarise a data set and draw one image with its regions.",
        examples=EXAMPLES,
    )
