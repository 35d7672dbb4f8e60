"""Tasks of a user's own tables, described by a TOML file: the page's example, every kind, and mistakes."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from launching import python

from finetune.annotations.official_files import MissingFile
from finetune.inference.predictor import Predictor
from finetune.task_types.table_tasks import read_task_file
from finetune.tasks import all_tasks
from shards.common.errors import UserError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "own_task.md").read_text()


def run(*arguments, cwd) -> subprocess.CompletedProcess:
    """A command in a process of its own: task files stay known in the process that has read them."""
    done = python(*arguments, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def images(world):
    """Thirty ids of images of the miniature world's COCO; some occur twice."""
    examples = all_tasks()["vqa"].read(world / "vqa", "train")
    return [example.images[0] for example in examples][:30]


@pytest.fixture
def data(world, tmp_path):
    folder = tmp_path / "data"
    (folder / "regions").mkdir(parents=True)
    (folder / "regions" / "coco").symlink_to(world / "regions" / "coco")
    for name in ("vqa",):
        (folder / name).symlink_to(world / name)
    return folder


def test_the_task_of_the_page_is_trained_and_its_run_needs_no_file(data, images, pretrained, tmp_path):
    [toml] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shapes.toml").write_text(toml)
    rows = [{"question": f"Is there a star {n}?", "file": f"{i}.png", "answer": n % 2} for n, i in enumerate(images)]
    for row in rows:
        row["answer"] = ("yes", "no")[row["answer"]]
    write_table(data / "shapes" / "train.csv", rows[:16])
    write_table(data / "shapes" / "val.csv", rows[16:23])
    write_table(data / "shapes" / "test.jsonl", [rows[23] | {"answer": ["yes", "no"]}, *rows[24:]])
    done = run("finetune.doctor", "--data", data, "--task_file", "shapes.toml", "--tasks", "shapes", cwd=tmp_path)
    assert done.returncode == 0 and "1 of 1 task is ready" in done.stdout, done.stdout + done.stderr
    flags = ("--data", data, "--init", pretrained, "--workers", 0)
    done = run("finetune.st", "--task_file", "shapes.toml", *flags, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0 and "Shapes, ST: accuracy" in done.stdout, done.stderr
    (tmp_path / "shapes.toml").rename(tmp_path / "elsewhere.toml")
    shutil.move(tmp_path / "runs" / "st-shapes", tmp_path / "copy")
    flags = ("--run", "copy", "--data", data, "--task", "shapes", "--split", "test", "--workers", 0)
    done = run("finetune.evaluate", *flags, "--submission", "said.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "on 7 examples" in done.stdout, done.stderr
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [one["id"] for one in said] == list(range(7)) and {one["answer"] for one in said} <= {"yes", "no"}
    done = run("finetune.examples", "--run", "copy", "--data", data, "--attention", "false", cwd=tmp_path)
    assert done.returncode == 0 and "Shapes" in done.stdout, done.stderr
    done = run("finetune.share", "--run", "copy", "--out", "shared", cwd=tmp_path)
    assert done.returncode == 0 and "Shapes" in (tmp_path / "shared" / "README.md").read_text(), done.stderr
    assert (tmp_path / "shared" / "tasks" / "shapes.toml").read_text() == toml


def test_several_kinds_are_trained_together_with_others(data, images, pretrained, tmp_path):
    """Each has a token of its own; a resumed run knows its tasks."""
    kinds = {
        "colour": ("labels", {"answer": lambda n: ("red", "blue")[n % 2]}, 'labels = ["red", "blue"]'),
        "same": ("pairs", {"second_image": lambda n: images[-n], "answer": lambda n: n % 2}, 'labels = ["0", "1"]'),
        "where": ("grounding", {"box": lambda n: [1, 2, 30 + n, 40]}, ""),
    }
    for name, (kind, columns, more) in kinds.items():
        splits = 'train = "train.jsonl"\nval = "val.jsonl"'
        text = f'kind = "{kind}"\nimages = "coco"\n{more}\n[splits]\n{splits}\n[columns]\ntype = "sort"\nid = "key"\n'
        (tmp_path / f"{name}.toml").write_text(text)
        for split, part in (("train", range(20)), ("val", range(20, 27))):
            rows = [{"key": f"k{n}", "text": f"text {n}", "image": images[n], "sort": f"s{n % 3}"} for n in part]
            rows = [row | {c: of(n) for c, of in columns.items()} for n, row in zip(part, rows, strict=True)]
            write_table(data / name / f"{split}.jsonl", rows)
    files = ",".join(f"{name}.toml" for name in kinds)
    flags = ("--task_file", files, "--tasks", "own,vqa", "--data", data, "--init", pretrained, "--workers", 0)
    done = run("finetune.mt", *flags, "--iterations", 3, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0 and "MT score" in done.stdout, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert sorted(config["tasks"]) == ["colour", "same", "vqa", "where"] and len(set(config["tokens"].values())) == 4
    done = run("finetune.evaluate", "--run", "run", "--task", "own", "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("s0") == 3, done.stdout + done.stderr
    for name in kinds:
        (tmp_path / f"{name}.toml").unlink()
    done = run("finetune.mt", "--out", tmp_path / "run", "--resume", cwd=tmp_path.parent)
    assert done.returncode == 0 and "MT score" in done.stdout, done.stderr
    found = Predictor(tmp_path / "run", device="cpu")
    image = np.zeros((64, 64, 3), np.uint8)
    assert set(found("colour", "text", image).choices) == {"red", "blue"}
    done = run("finetune.report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


GOOD = 'kind = "answers"\nimages = "coco"\n[splits]\ntrain = "a.csv"\nval = "b.jsonl"\n'


def removed(out: Path, task: str) -> set[str]:
    """The images that finetune.clean has listed for a task."""
    return {json.loads(line)["image"] for line in (out / "removed" / f"{task}.jsonl").read_text().splitlines()}


def test_a_task_file_is_decontaminated_with_the_other_tasks(data, pretrained, tmp_path):
    """Its test images are removed from VQA's training data, and VQA's test images from its own, also under another
    name of the images (visual7w for genome)."""
    vqa = all_tasks()["vqa"]
    learned, tested = (
        list(dict.fromkeys(e.images[0] for split in splits for e in vqa.read(data / "vqa", split)))
        for splits in (vqa.learned, vqa.tests)
    )
    (tmp_path / "own.toml").write_text(GOOD + 'test = "c.csv"\n')
    (tmp_path / "seven.toml").write_text(GOOD.replace("coco", "visual7w"))
    tables = {
        "own/a.csv": learned[3:9] + tested[:2],
        "own/b.jsonl": learned[9:12] + tested[1:3],
        "own/c.csv": learned[:3],
        "seven/a.csv": ["v7w_1", "v7w_2"],
        "seven/b.jsonl": ["v7w_3"],
    }
    for name, images in tables.items():
        write_table(data / name, [{"text": "What?", "image": image, "answer": "yes"} for image in images])
    map_of_genome = [{"image_id": n, "coco_id": int(learned[0]) if n == 2 else None} for n in (1, 2, 3)]
    (data / "vgqa").mkdir()
    (data / "vgqa" / "image_data.json").write_text(json.dumps(map_of_genome))

    done = run("finetune.clean", "--data", data, cwd=tmp_path)
    assert done.returncode == 0 and "own" not in json.loads((data / "clean" / "clean.json").read_text())["tasks"]
    train = ("finetune.st", "--task_file", "own.toml", "--data", data, "--clean", "--init", pretrained)
    train += ("--epochs", 1, "--workers", 0)
    done = run(*train, cwd=tmp_path)
    assert done.returncode == 2 and "clean: does not contain own; run finetune.clean" in done.stderr
    assert "--task_file" in done.stderr

    clean = ("finetune.clean", "--data", data)
    done = run(*clean, "--task_file", "own.toml,seven.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = data / "clean"
    assert removed(out, "vqa") == set(learned[:3]) and removed(out, "own") == set(tested[:3])
    assert removed(out, "seven") == {"v7w_2"}
    done = run(*train, cwd=tmp_path)
    assert done.returncode == 0 and "cleaned: 2 of 8 examples of own's train removed" in done.stdout, done.stderr

    for name in ("own", "seven"):  # the lists keep copies, which the check reads
        (tmp_path / f"{name}.toml").rename(tmp_path / f"old-{name}.toml")
    done = run(*clean, "--check", cwd=tmp_path)
    assert done.returncode == 0 and "no test image remains" in done.stdout, done.stdout + done.stderr
    write_table(data / "own" / "c.csv", [{"text": "What?", "image": learned[4], "answer": "yes"}])
    done = run(*clean, "--check", cwd=tmp_path)
    assert done.returncode == 1 and "in the test set own test" in done.stdout, done.stdout + done.stderr
    (tmp_path / "absent.toml").write_text(GOOD)
    done = run(*clean, "--task_file", "absent.toml", cwd=tmp_path)
    assert done.returncode == 2 and "absent not found; it should contain a.csv, b.jsonl" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t", GOOD.replace("answers", "words"), "Invalid enum value 'words'"),
        ("t", GOOD + "[rows]\n", "unknown field `rows`"),
        ("t", GOOD.replace('images = "coco"', ""), "missing required field `images`"),
        ("t", GOOD.replace("kind", "kind ="), "does not describe a task"),
        ("t", GOOD.replace('val = "b.jsonl"\n', ""), r"\[splits\] has train; should have two or more"),
        ("t", GOOD.replace("a.csv", "a.xlsx"), r"train is a.xlsx; should be the name of a file in DATA/t"),
        ("t", GOOD.replace("a.csv", "../a.csv"), r"train is ../a.csv; should be the name of a file"),
        ("t", 'labels = ["x", "y"]\n' + GOOD, "labels are only for the kinds labels and pairs, not for answers"),
        ("t", GOOD.replace("answers", "labels"), "labels should be two or more different names"),
        ("My task", GOOD, "should have small letters, digits, - and _ only, not My task"),
    ],
)
def test_a_file_that_describes_no_task(tmp_path, name, text, message):
    (tmp_path / f"{name}.toml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_task_file(tmp_path / f"{name}.toml", 18)
    assert str(error.value).startswith(str(tmp_path / f"{name}.toml"))


def task_of(tmp_path, kind: str, rows: list[dict], more: str = "", columns: str = "") -> tuple:
    text = GOOD.replace("answers", kind).replace("a.csv", "a.jsonl")
    (tmp_path / "t.toml").write_text(more + text + columns)
    write_table(tmp_path / "a.jsonl", rows)
    return read_task_file(tmp_path / "t.toml", 18)


ROW = {"text": "What?", "image": "val2014/COCO_val2014_000000000042.jpg"}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("answers", ROW, "a.jsonl, example 0: answer is missing; the split train needs it"),
        ("answers", ROW | {"answer": {"a": 1}}, "line 1: answer is .* should be a text or a list of texts"),
        ("answers", {"image": "1.jpg", "answer": "a"}, "line 1: has no column text; it has image, answer"),
        ("answers", ROW | {"text": " ", "answer": "a"}, "line 1: text is .* should be a text"),
        ("grounding", ROW | {"box": [3, 0, 2, 9]}, "line 1: box is .* should be x1 y1 x2 y2 in pixels"),
        ("grounding", ROW | {"box": "1 2 3"}, "line 1: box is .* should be x1 y1 x2 y2 in pixels"),
        ("labels", ROW | {"answer": "maybe"}, "line 1: answer is .*; should be one of the labels no, yes"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path, kind, row, message):
    more = 'labels = ["no", "yes"]\n' if kind == "labels" else ""
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, kind, [row], more).read(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_relative_to_the_image_size_are_refused(tmp_path, split):
    """They were accepted, and the accuracy after training was 0."""
    rows = [ROW | {"where": box} for box in ([0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1])]
    task = task_of(tmp_path, "grounding", rows, columns='[columns]\nbox = "where"\n')
    write_table(tmp_path / "b.jsonl", rows)
    file = dict(task.tables)[split]
    with pytest.raises(UserError, match=f"{file}: all boxes of the column where are between 0 and 1; they should be"):
        task.read(tmp_path, split)
    write_table(tmp_path / file, [*rows, ROW | {"where": [0, 0, 2, 1]}])
    assert len(task.read(tmp_path, split)) == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_table_is_not_called_an_official_file(tmp_path, split):
    task = task_of(tmp_path, "answers", [ROW | {"answer": "a"}])
    file = dict(task.tables)[split]
    (tmp_path / file).unlink(missing_ok=True)
    with pytest.raises(MissingFile) as error:
        task.read(tmp_path, split)
    fix = f"add this table of the split {split}, or name another one under [splits] in t.toml"
    assert str(error.value) == f"{tmp_path / file}: not found; {fix}"


def test_targets_and_scores_of_every_kind(tmp_path):
    task = task_of(tmp_path, "answers", [ROW | {"answer": ["The Cat", "dog"]}, ROW | {"answer": 2}])
    first, second = task.read(tmp_path, "train")
    assert first.images == ("42",) and first.target == {"the cat": 1.0, "dog": 1.0} and second.target == {"2": 1.0}
    assert task.scores([first, second], ["dog", "3"])["accuracy"].tolist() == [1, 0]
    different = ["A", "the", "+", "-", "C", "C++", "C#", "1.5", "15"]  # in VQA's normal form four of them are empty
    task = task_of(tmp_path, "answers", [ROW | {"answer": answer} for answer in different])
    assert sorted(task.vocabulary(tmp_path).answers) == sorted(answer.lower() for answer in different)
    task = task_of(tmp_path, "grounding", [ROW | {"box": "0 0 10 10"}, ROW | {"box": [0, 0, 10, 10.0]}])
    examples = task.read(tmp_path, "train")
    assert [example.target for example in examples] == [(0, 0, 10, 10)] * 2
    assert task.scores(examples, np.array([[0, 0, 10, 6], [0, 0, 10, 5]]))["accuracy"].tolist() == [1, 0]
    labels = 'labels = ["no", "yes"]\n'
    task = task_of(tmp_path, "pairs", [ROW | {"second_image": "a/7.png", "answer": "yes"}], labels)
    [example] = task.read(tmp_path, "train")
    assert example.images == ("42", "7") and example.target == 1
    assert json.loads(task.submission([example], np.array([0]))) == {"id": 0, "answer": "no"}


def test_two_files_of_one_name_and_a_name_that_is_taken(tmp_path):
    (tmp_path / "vqa.toml").write_text(GOOD)
    done = run("finetune.st", "--task_file", "vqa.toml", cwd=tmp_path)
    assert done.returncode == 2 and "vqa.toml: there is already a task vqa; rename it" in done.stderr
    for folder, kind in (("one", "answers"), ("two", "grounding")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.toml").write_text(GOOD.replace("answers", kind))
    done = run("finetune.mt", "--task_file", "one/t.toml,two/t.toml", "--tasks", "t", cwd=tmp_path)
    assert done.returncode == 2 and "two/t.toml: another file describes another task t" in done.stderr
    done = run("finetune.st", cwd=tmp_path)
    assert done.returncode == 2 and "--task is missing; it should be one of vqa," in done.stderr
    done = run("finetune.st", "--task_file", "none.toml", cwd=tmp_path)
    assert done.returncode == 2 and "none.toml: not found" in done.stderr
