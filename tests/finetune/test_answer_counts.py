"""Answers that are too rare to be chosen from: doctor counts them as training does; --min_answer_count."""

import json
from collections import Counter

import pytest

from finetune.annotations.answers import normalise


@pytest.fixture
def rare(world, tmp_path):
    """The world's questions of VQA with answers that are given at most three times."""
    data, answers = tmp_path / "data", []
    (data / "vqa").mkdir(parents=True)
    (data / "regions").symlink_to(world / "regions")
    for path in (world / "vqa").iterdir():
        content = json.loads(path.read_text())
        if "annotations" in content and "test" not in path.name:
            for record in content["annotations"]:
                answer = f"word{len(answers) // 3 if len(answers) < 30 else len(answers)}"
                answers.append(answer)
                record["multiple_choice_answer"] = answer
                record["answers"] = [one | {"answer": answer} for one in record["answers"]]
        (data / "vqa" / path.name).write_text(json.dumps(content))
    return data, answers


def test_doctor_counts_answers_as_training_does(rare, pretrained, tmp_path, run_command):
    data, answers = rare
    folder = data / "vqa"
    sentence = f"{folder}: no answer is the ground truth of 9 or more questions; the most frequent one has 3; "
    sentence += "lower --min_answer_count, or give the answers in a file "
    status, out, _ = run_command("finetune.doctor", "--data", data, "--tasks", "vqa")
    assert status == 1 and "vqa: with gaps" in out and f"to fix: answers: {sentence}(--answers)" in out
    shared = ("--data", data, "--init", pretrained, "--workers", 0, "--out", tmp_path / "run")
    st = ("finetune.st", "--task", "vqa", "--epochs", 1, *shared)
    status, _, err = run_command(*st)
    assert status == 2 and err == f"error: {sentence}(--answers)\n"
    status, _, err = run_command("finetune.mt", "--tasks", "vqa", *shared)
    assert status == 2 and err == f"error: {sentence}(--vqa_answers)\n"
    expected = [answer for answer, count in Counter(map(normalise, answers)).items() if count >= 2]
    status, out, _ = run_command("finetune.doctor", "--data", data, "--tasks", "vqa", "--min_answer_count", 2)
    assert status == 0 and f"  {len(expected)} answers in the vocabulary" in out and "1 of 1 task is ready" in out
    status, _, err = run_command(*st, "--min_answer_count", 2)
    assert status == 0, err
    assert sorted(json.loads((tmp_path / "run" / "answers-vqa.json").read_text())) == sorted(expected)
    status, out, err = run_command("finetune.st", "--task", "vqa", "--out", tmp_path / "run", "--resume")
    assert status == 0 and "already finished" in out, err


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("st", "--task", "refcoco"), "--min_answer_count 2: refcoco has no answer vocabulary"),
        (("mt", "--tasks", "refcoco,nlvr2"), "--min_answer_count 2: none of the tasks has an answer vocabulary"),
        (
            ("st", "--task", "vqa", "--init", "TRAINED"),
            "--min_answer_count 2: cannot be used for vqa, whose answers are those of TRAINED",
        ),
    ],
)
def test_a_count_without_a_use(command, complaint, world, trained, pretrained, tmp_path, run_command):
    words = [str(trained) if word == "TRAINED" else word for word in command[1:]]
    words += [] if "--init" in words else ["--init", pretrained]
    flags = ("--data", world, "--workers", 0, "--out", tmp_path / "run", "--min_answer_count", 2)
    status, _, err = run_command(f"finetune.{command[0]}", *words, *flags)
    assert status == 2 and complaint.replace("TRAINED", str(trained)) in err
