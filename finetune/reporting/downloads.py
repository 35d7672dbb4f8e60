"""Where official files and images can be downloaded, from the table in downloads.toml."""

import datetime
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from finetune.task_types.base import Task

TABLE = Path(__file__).with_suffix(".toml")
REPORTS = {"worked": "reported to work", "listed": "listed there", "unchecked": "not checked", "dead": "reported dead"}


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place of some files, and the source that names it; see downloads.toml."""

    at: str
    state: Literal["worked", "listed", "unchecked", "dead"]
    source: str
    date: datetime.date | None = None

    def report(self) -> str:
        """What the source reports, and when."""
        return REPORTS[self.state] if self.date is None else f"{REPORTS[self.state]}, {self.date}"

    def describe(self, file: str) -> str:
        return f"{self.at.replace('{file}', file)}; {self.report()}"


class DataSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files that have the same places. tasks: that read them; images: name of the region shards of these images."""

    title: str
    files: tuple[str, ...]
    places: tuple[Place, ...]
    tasks: tuple[str, ...] = ()
    images: str = ""
    licence: str = ""

    def place(self) -> Place | None:
        """The first place that is not dead."""
        return next((place for place in self.places if place.state != "dead"), None)


class DownloadsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of downloads.toml. written: the date on which its sources were read."""

    written: datetime.date
    data_set: tuple[DataSet, ...]


@cache
def download_table() -> DownloadsTable:
    return msgspec.convert(tomllib.loads(TABLE.read_text(encoding="utf-8")), DownloadsTable)


def download_of(task: Task, file: str) -> str | None:
    """The place of an official file: what the task states, else from the table. None if neither has one."""
    if file in task.downloads:
        return task.downloads[file]
    for data_set in download_table().data_set:
        if task.name in data_set.tasks and file in data_set.files and (place := data_set.place()):
            return place.describe(file)
    return None


def image_downloads(images: str) -> list[str]:
    """The archives of the images of some region shards, with their places."""
    return [
        f"{', '.join(data_set.files)}; see {place.describe(data_set.files[0])}"
        for data_set in download_table().data_set
        if data_set.images == images and (place := data_set.place())
    ]
