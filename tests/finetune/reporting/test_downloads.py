"""Where official files can be downloaded: the table is complete, the page has all of it, and doctor prints it."""

import contextlib
import dataclasses
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

from finetune.annotations.official_files import MissingFile
from finetune.annotations.source_files import recording
from finetune.reporting.data_readiness import examine, readiness_lines
from finetune.reporting.downloads import DataSet, Place, download_of, download_table, image_downloads
from finetune.tasks import all_tasks, paper_tasks

ROOT = Path(__file__).parents[3]
TASKS = all_tasks()
ADDRESS = re.compile(r"https?://\S+")


@pytest.mark.parametrize("name", TASKS)
def test_every_file_of_a_task_has_a_place(name):
    task = TASKS[name]
    wanted = [file for file in (*task.files, getattr(task, "stand_in", "")) if file]
    assert wanted and [file for file in wanted if download_of(task, file) is None] == []
    assert image_downloads(task.images)


def test_files_that_readers_read_have_a_place(world):
    """Also those that a task should list in `files` and does not."""
    for task in paper_tasks().values():
        with recording() as sources:
            for split in task.splits:
                with contextlib.suppress(MissingFile):  # the world has no test-dev
                    task.examples(task.folder(world), split)
        read = {name for (_, name), found in sources.searched.items() if found}
        assert read and [name for name in sorted(read) if download_of(task, name) is None] == [], task.name


def test_entries_of_the_table():
    table = download_table()
    files = {name: set(task.files) | {getattr(task, "stand_in", "")} for name, task in TASKS.items()}
    for data_set in table.data_set:
        assert data_set.files and data_set.places, data_set.title
        for name in data_set.tasks:
            assert set(data_set.files) <= files[name], (name, data_set.files)
        for place in data_set.places:
            assert ADDRESS.match(place.source) and ADDRESS.search(place.at), data_set.title
            assert place.date is None or place.date <= table.written
            if place.state in ("worked", "dead"):
                assert place.date is not None, (data_set.title, place.at)


def test_the_page_has_the_table(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the script changes
    path = ROOT / "docs" / "downloads.py"
    spec = importlib.util.spec_from_file_location("docs_downloads", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert script.with_table(page) == page, "run python docs/downloads.py"
    assert f"It was written on {download_table().written}." in page
    rows = [line for line in page.splitlines() if "[source](" in line and line.startswith("| ")]
    assert len(rows) == sum(len(data_set.places) for data_set in download_table().data_set)
    for data_set in download_table().data_set:
        for place in data_set.places:
            assert any(place.source in row and place.report() in row for row in rows), place


def test_a_dead_place_is_not_advised():
    dead = Place("https://a.org/{file}", "dead", "https://b.org")
    alive = Place("https://c.org/{file}.gz", "unchecked", "https://b.org")
    assert DataSet("x", ("a.json",), (dead, alive)).place() is alive
    assert DataSet("x", ("a.json",), (dead,)).place() is None
    assert alive.describe("a.json") == "https://c.org/a.json.gz; not checked"


def test_doctor_prints_a_place_for_every_missing_file(world, tmp_path, run_command):
    shutil.copytree(world / "guesswhat", tmp_path / "guesswhat")
    for path in (tmp_path / "guesswhat").glob("guesswhat.test.jsonl*"):
        path.unlink()
    status, out, err = run_command("finetune.doctor", "--data", tmp_path, "--tasks", "guesswhat,nlvr2,refcoco")
    assert status == 1, err
    missing = [line.strip() for line in out.splitlines() if line.startswith("  not found: ")]
    games = "https://florian-strub.com/guesswhat.test.jsonl.gz; reported to work, 2022-07-21"
    assert f"not found: guesswhat.test.jsonl; see {games}" in missing
    assert [line.split()[2].rstrip(";") for line in missing if "; see http" in line] == [
        *("refs(unc).p", "instances.json", "guesswhat.test.jsonl", "train.json", "dev.json", "test1.json")
    ]
    images = "train2014.zip, val2014.zip; see http://images.cocodataset.org/zips/train2014.zip; not checked, "
    assert f"  images: {images}" in out and out.count("  images: ") == 2  # of GuessWhat, which has examples


def test_doctor_prints_why_a_test_split_is_not_usable(world, tmp_path, run_command):
    shutil.copytree(world / "nlvr2", tmp_path / "nlvr2")
    (tmp_path / "regions").symlink_to(world / "regions")
    path = tmp_path / "nlvr2" / "test1.json"
    for content, why in (("[1, 2", f"test1: {path}"), (None, "test1: files not found")):
        path.unlink() if content is None else path.write_text(content)
        status, out, err = run_command("finetune.doctor", "--data", tmp_path, "--tasks", "nlvr2")
        assert status == 0 and "nlvr2: ready" in out, err
        assert f"  not usable: {why}" in out


def test_what_a_task_states_itself(tmp_path):
    """A task of another package, which is not in the table."""
    task = dataclasses.replace(
        TASKS["nlvr2"], name="nlvr3", files=("train.json", "dev.json"), downloads={"train.json": "https://a.org/x.zip"}
    )
    assert hash(task) == hash(dataclasses.replace(task, downloads={})) and "a.org" not in repr(task)
    lines = readiness_lines(examine(task, str(tmp_path), {}))
    assert "  not found: train.json; see https://a.org/x.zip" in lines
    assert "  not found: dev.json; no place to download it is known" in lines
