"""python -m shards.convert SOURCE --out DIR: published features become region shards."""

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from shards import tsv
from shards.dataset import Dataset, begin_dataset, finish_dataset, open_dataset
from shards.errors import UserError
from shards.flags import REQUIRED, command, flag
from shards.index import saved_index
from shards.writer import write_shard


@dataclass
class ConvertConfig:
    """Flags of shards.convert."""

    source: str = flag(REQUIRED, "a .tsv or .tsv.gz of bottom-up-attention features", first=True)
    out: str = flag(REQUIRED, "the folder for the shards")
    per_shard: int = flag(1000, "images per shard", low=1)
    on_bad_row: str = flag("stop", "what to do about a row that cannot be used", choices=("stop", "skip"))


def convert(config: ConvertConfig) -> Dataset:
    """Runs a conversion to its end; shards that an earlier run finished are kept. Returns the data set."""
    if not config.source.endswith((".tsv", ".tsv.gz")):
        raise UserError(f"{config.source}: should be a .tsv or .tsv.gz file")
    if not os.path.isfile(config.source):
        raise UserError(f"{config.source}: no such file")
    out = Path(config.out)
    plan = {
        "command": "shards.convert",
        "source": os.path.abspath(config.source),
        "bytes": os.path.getsize(config.source),
        "per_shard": config.per_shard,
        "on_bad_row": config.on_bad_row,
    }
    begin_dataset(out, plan)
    if (out / "dataset.json").exists():
        dataset = open_dataset(str(out))
        print(f"{out}: was converted before, {len(dataset)} images; nothing to do")
        return dataset
    rows = _Rows(config, str(out))
    paths = []
    with contextlib.closing(rows.bar):
        while lines := rows.take(config.per_shard):
            path = out / f"regions-{len(paths):05d}.tar"
            if not path.exists() or saved_index(path) is None:
                write_shard(path, rows.samples(lines))
            paths.append(str(path))
    return _finish(config, out, plan, paths, rows.skipped)


class _Rows:
    """The rows of a TSV in runs of a shard's length, with what was skipped and the progress in bytes."""

    def __init__(self, config: ConvertConfig, out: str):
        self.config, self.skipped = config, 0
        self.lines = tsv.read_lines(config.source)
        self.source = os.path.relpath(config.source, out)
        total = None if config.source.endswith(".gz") else os.path.getsize(config.source)
        self.bar = tqdm(total=total, unit="B", unit_scale=True, mininterval=0.5, dynamic_ncols=True)

    def take(self, count: int) -> list[tuple[int, str]]:
        lines = list(itertools.islice(self.lines, count))
        self.bar.update(sum(len(line) + 1 for _, line in lines))
        return lines

    def samples(self, lines):
        for number, line in lines:
            try:
                yield tsv.parse_row(line, self.source)
            except tsv.BadRow as error:
                where = f"{self.config.source}, line {number}: {error}"
                if self.config.on_bad_row == "stop":
                    raise UserError(f"{where}; --on_bad_row skip goes on without it") from None
                self.skipped += 1
                tqdm.write(f"skipped {where}")


def _finish(config: ConvertConfig, out: Path, plan: dict, paths: list[str], skipped: int) -> Dataset:
    indexes = [saved_index(path) for path in paths]
    paths = [path for path, index in zip(paths, indexes, strict=True) if len(index)]
    if not paths:
        raise UserError(f"{config.source}: holds no usable row")
    dataset = finish_dataset(
        out, paths, detector="bottom-up attention", num_classes=tsv.NUM_CLASSES, extra={"plan": plan}
    )
    print(f"{out}: {len(dataset)} images in {len(paths)} shards" + (f"; {skipped} rows skipped" if skipped else ""))
    return dataset


def run(config: ConvertConfig) -> None:
    convert(config)


if __name__ == "__main__":
    command(ConvertConfig, run, "shards.convert", "Published features become region shards.")
