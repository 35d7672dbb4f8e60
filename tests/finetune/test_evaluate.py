"""finetune.evaluate: what it prints and stores, compared with the official files and its own submissions."""

import json

import pytest
from official_files import vqa_accuracy_by_type

from finetune.answers import normalise


def test_vqa_by_question_type(world, trained, tmp_path, run_command):
    flags = ("--run", trained, "--data", world, "--workers", 0, "--task", "vqa", "--split", "val")
    files = ("--submission", tmp_path / "vqa.json", "--scores", tmp_path / "scores.json")
    status, out, err = run_command("finetune.evaluate", *flags, *files)
    assert (status, err) == (0, "")
    said = {one["question_id"]: one["answer"] for one in json.loads((tmp_path / "vqa.json").read_text())}
    annotations = json.loads((world / "vqa" / "v2_mscoco_val2014_annotations.json").read_text())
    expected = vqa_accuracy_by_type(annotations, said, "question_type", normalise)
    kept = json.loads((tmp_path / "scores.json").read_text())
    by = kept["by"]["question type"]
    assert {name: 100 * part["score"] for name, part in by.items()} == pytest.approx(expected) and len(expected) > 2
    assert sum(part["examples"] for part in by.values()) == kept["examples"] == len(said)
    for name, accuracy in vqa_accuracy_by_type(annotations, said, "answer_type", normalise).items():
        assert 100 * kept[name] == pytest.approx(accuracy)
    printed = {line.rsplit(maxsplit=2)[0]: line.split()[-2] for line in out.splitlines() if line.startswith(tuple(by))}
    assert printed == {name: f"{accuracy:.2f}" for name, accuracy in expected.items()}
