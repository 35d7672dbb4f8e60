"""GQA's official metrics against a slow reading of its rules, and the files of its test and submission."""

import json
import shutil

import numpy as np
import pytest
from official_files import dump

from finetune.evaluation.scores import breakdown_of
from finetune.metrics.gqa_metrics import entailed_questions
from finetune.tasks import all_tasks
from shards.common.errors import UserError

GQA = all_tasks()["gqa"]
ANSWERS = ["yes", "no", "red", "blue", "color", "shape", "material", "dog"]
PROGRAMS = [
    ("select", "dog (1)"),
    ("filter color", "red"),
    ("relate", "dog,left,s (2)"),
    ("exist", "?"),
    ("query", "name"),
    ("query", "color"),
    ("choose name", "dog|cat"),
    ("choose color", "red|blue"),
    ("verify rel", "dog,that exists,o (3)"),  # "exist" in the argument counts too
]


def official(questions: dict, choices: dict, said: dict[str, str]) -> dict:
    """The metrics by GQA's rules, in percent as its script prints them.

    questions: all of a split by id; only balanced ones are scored, while any may be entailed. said: of every question.
    """
    scored = {id: q for id, q in questions.items() if q["isBalanced"]}
    right = {id: 100.0 * (said[id] == q["answer"]) for id, q in questions.items()}

    def mean(ids) -> float:
        return sum(right[id] for id in ids) / len(ids)

    def by(key) -> dict[str, tuple[float, int]]:
        keys = sorted({key(q) for q in scored.values()})
        parts = {str(name): [id for id, q in scored.items() if key(q) == name] for name in keys}
        return {name: (mean(ids), len(ids)) for name, ids in parts.items()}

    def steps(q) -> int:
        texts = [f"{step['operation']}: {step['argument']}" for step in q["semantic"]]
        return len([t for t in texts if "exist" not in t and "query: name" not in t and "choose name" not in t])

    def among(kind) -> float:
        found = 0
        for id, q in scored.items():
            allowed = choices[id][kind]
            if "Common" in q["types"]["detailed"]:
                allowed = ["color", "material", "shape"]
            found += said[id] in allowed
        return 100 * found / len(scored)

    consistent = []
    for id, q in scored.items():
        others = [other for other in q["entailed"] if other != id]
        if right[id] and others:
            consistent.append(mean(others))

    total, questions_in_groups = 0.0, 0
    for group in {q["groups"]["global"] for q in scored.values()} - {None}:
        ids = [id for id, q in scored.items() if q["groups"]["global"] == group]
        chi_square = 0.0
        for answer in {questions[id]["answer"] for id in ids}:
            expected = sum(questions[id]["answer"] == answer for id in ids)
            observed = sum(said[id] == answer for id in ids)
            chi_square += (observed - expected) ** 2 / expected
        total += chi_square * len(ids)
        questions_in_groups += len(ids)

    is_open = {id: q["types"]["structural"] == "query" for id, q in scored.items()}
    return {
        "accuracy": mean(list(scored)),
        "open": mean([id for id in scored if is_open[id]]),
        "binary": mean([id for id in scored if not is_open[id]]),
        "consistency": sum(consistent) / len(consistent),
        "validity": among("valid"),
        "plausibility": among("plausible"),
        "distribution": total / questions_in_groups / 100,
        "by": {
            "structural type": by(lambda q: q["types"]["structural"]),
            "semantic type": by(lambda q: q["types"]["semantic"]),
            "steps": by(steps),
            "words": by(lambda q: len(q["question"].split())),
        },
    }


def made(rng, count: int = 400) -> tuple[dict, dict, dict[str, str]]:
    """(all questions, choices, an answer to each) with every case of the rules."""
    ids = [f"{200 + n:06d}" for n in range(count)]
    questions, choices, said = {}, {}, {}

    def draw(values, most: int) -> list:
        return [values[int(n)] for n in rng.integers(len(values), size=int(rng.integers(1, most + 1)))]

    for n, id in enumerate(ids):
        structure = ("verify", "query", "choose", "logical", "compare")[n % 5]
        questions[id] = {
            "question": " ".join(["word"] * int(rng.integers(2, 15))) + "?",
            "imageId": f"n{n % 40}" if n % 3 else str(n),
            "answer": ANSWERS[int(rng.integers(len(ANSWERS)))],
            "fullAnswer": "It is.",
            "isBalanced": bool(rng.random() < 0.5),
            "entailed": [] if rng.random() < 0.4 else draw(ids, 4) + draw([id, ids[n - 1]], 2),
            "equivalent": [id],
            "types": {
                "structural": structure,
                "semantic": ("attr", "cat", "global", "obj", "rel")[int(rng.integers(5))],
                "detailed": "twoCommon" if rng.random() < 0.2 else "verifyAttr",
            },
            "groups": {"global": (None, "color", "animal")[int(rng.integers(3))], "local": "06-dog"},
            "semantic": [
                {"operation": name, "dependencies": [], "argument": argument} for name, argument in draw(PROGRAMS, 12)
            ],
        }
        choices[id] = {"valid": draw(ANSWERS, 8), "plausible": draw(ANSWERS, 4)}
        said[id] = questions[id]["answer"] if rng.random() < 0.5 else ("Yes", *ANSWERS)[int(rng.integers(9))]
    return questions, choices, said


def write(folder, split: str, questions: dict, choices: dict) -> None:
    balanced = {id: q for id, q in questions.items() if q["isBalanced"]}
    dump(folder / f"{split}_balanced_questions.json", balanced)
    dump(folder / "questions1.2" / f"{split}_all_questions.json", questions)  # in a folder, as the archive has it
    dump(folder / "eval" / f"{split}_choices.json", choices)


@pytest.mark.parametrize("split", ["val", "testdev"])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_the_official_ones(tmp_path, split, seed):
    questions, choices, said = made(np.random.default_rng(seed))
    write(tmp_path, split, questions, choices)
    expected = official(questions, choices, said)
    examples = GQA.read(tmp_path, split)
    predictions = [said[example.id] for example in examples]
    found = GQA.scores(examples, predictions)
    for name in ("accuracy", "open", "binary"):
        assert 100 * found[name].mean() == pytest.approx(expected[name], rel=1e-12)
    by = breakdown_of(GQA, examples, found["accuracy"])
    for title, parts in expected["by"].items():
        assert list(by[title]) == list(parts)  # numbers in their order
        for name, (score, count) in parts.items():
            assert 100 * by[title][name]["score"] == pytest.approx(score) and by[title][name]["examples"] == count
    assert {"10", "2"} & set(by["words"]) == {"10", "2"} and set(by["steps"]) > {"0", "2", "5"}
    further = GQA.further_scores(tmp_path, split, examples, predictions)
    more = [example.id for example in further.examples]
    assert not set(more) & {example.id for example in examples} and len(set(more)) == len(more) > 20
    assert [(e.text, *e.images) for e in further.examples] == [
        (questions[id]["question"], questions[id]["imageId"]) for id in more
    ]
    scores = further.scores({id: said[id] for id in more})
    assert {name: scores[name] for name in ("consistency", "validity", "plausibility", "distribution")} == scores
    for name, value in scores.items():
        assert value * (1 if name == "distribution" else 100) == pytest.approx(expected[name], rel=1e-12), name
    text = f"consistency {expected['consistency']:.2f}%, validity {expected['validity']:.2f}%"
    assert further.describe(scores).startswith(text) and further.absent == ""
    assert further.describe(scores).endswith(f"distribution {expected['distribution']:.2f} (lower is better)")


def test_images_of_entailed_questions_have_the_ids_of_the_regions(tmp_path):
    asked = {"question": "Is it red?", "answer": "yes"}
    dump(tmp_path / "all.json", {"1": asked | {"imageId": "5", "entailed": ["2"]}, "2": asked | {"imageId": "5.jpg"}})
    _, further = entailed_questions(tmp_path / "all.json", {"1": True})
    assert [example.images for example in further] == [("5",)]


def test_entailed_questions_without_a_prediction_do_not_count(tmp_path):
    """Of images without regions, under --missing skip; nor does a question none of whose entailed ones has one."""
    questions, choices, said = made(np.random.default_rng(7))
    write(tmp_path, "val", questions, choices)
    examples = GQA.read(tmp_path, "val")
    further = GQA.further_scores(tmp_path, "val", examples, [said[example.id] for example in examples])
    kept = {example.id: said[example.id] for example in further.examples[::3]}
    known = set(kept) | {example.id for example in examples}
    for q in questions.values():
        q["entailed"] = [id for id in q["entailed"] if id in known]
    expected = official(questions, choices, said)["consistency"]
    assert 100 * further.scores(kept)["consistency"] == pytest.approx(expected, rel=1e-12)


def test_broken_files_end_in_a_sentence(tmp_path):
    questions, choices, _ = made(np.random.default_rng(1), 60)
    write(tmp_path, "val", questions, choices)
    examples = GQA.read(tmp_path, "val")
    predictions = [questions[example.id]["answer"] for example in examples]
    first = examples[0].id

    def check(message):
        with pytest.raises(UserError, match=message):
            GQA.further_scores(tmp_path, "val", examples, predictions)

    dump(tmp_path / "eval" / "val_choices.json", {id: of for id, of in choices.items() if id != first})
    check(f"val_choices.json: no record {first}; download it again")
    dump(tmp_path / "eval" / "val_choices.json", choices | {first: {"valid": ["yes"]}})
    check(f"val_choices.json, record '{first}': cannot be read")
    dump(tmp_path / "eval" / "val_choices.json", choices)
    questions[first]["entailed"] = ["999"]
    dump(tmp_path / "questions1.2" / "val_all_questions.json", questions)
    check("val_all_questions.json: no record 999; download it again")


@pytest.fixture
def evaluate(world, trained, tmp_path, run_command):
    """evaluate(SPLIT, flags) -> (its output, its scores, its submission); on a copy of the world's GQA files."""
    (tmp_path / "data" / "regions").parent.mkdir()
    (tmp_path / "data" / "regions").symlink_to(world / "regions")
    shutil.copytree(world / "gqa", tmp_path / "data" / "gqa")

    def call(split: str, *more):
        flags = ("--run", trained, "--data", tmp_path / "data", "--workers", 0, "--task", "gqa", "--split", split)
        files = [tmp_path / f"{split}-{kind}.json" for kind in ("scores", "submission")]
        flags = (*flags, "--scores", files[0], "--submission", files[1], *more)
        status, out, err = run_command("finetune.evaluate", *flags)
        data = f"--data {tmp_path / 'data'}: differs from the data that {trained} was trained on"
        assert status == 0 and err.startswith(f"warning: {data}") and len(err.splitlines()) == 1
        return out, *(json.loads(file.read_text()) if file.exists() else None for file in files)

    return call


def test_evaluate_reports_them(evaluate, tmp_path):
    """Predictions for all questions come from the submission split, which has those of val and testdev too."""
    folder = tmp_path / "data" / "gqa"
    out, scores, submission = evaluate("submission")
    assert scores is None and "without public answers" in out
    asked = json.loads((folder / "submission_all_questions.json").read_text())
    said = {one["questionId"]: one["prediction"] for one in submission}
    assert list(said) == list(asked) and not any("answer" in record for record in asked.values())
    for split in ("val", "testdev"):
        questions = json.loads((folder / f"{split}_all_questions.json").read_text())
        choices = json.loads((folder / f"{split}_choices.json").read_text())
        expected = official(questions, choices, said)
        out, scores, submission = evaluate(split)
        assert {one["questionId"]: one["prediction"] for one in submission} == {
            id: said[id] for id, record in questions.items() if record["isBalanced"]
        }
        for name in ("accuracy", "open", "binary", "consistency", "validity", "plausibility"):
            assert 100 * scores[name] == pytest.approx(expected[name], rel=1e-12)
        assert scores["distribution"] == pytest.approx(expected["distribution"], rel=1e-12)
        line = f"GQA, {split}: consistency {expected['consistency']:.2f}%, validity {expected['validity']:.2f}%, "
        assert line in out and "by semantic type" in out and "further examples for the metrics" in out
        assert {title: list(parts) for title, parts in scores["by"].items()} == {
            title: list(parts) for title, parts in expected["by"].items()
        }


def test_absent_files_are_named_once(evaluate, tmp_path):
    folder = tmp_path / "data" / "gqa"
    (folder / "testdev_choices.json").unlink()
    out, scores, _ = evaluate("testdev")
    assert f"not computed: validity and plausibility need testdev_choices.json in {folder}\n" in out
    assert "consistency" in scores and not {"validity", "plausibility"} & set(scores)
    (folder / "testdev_all_questions.json").unlink()
    out, scores, _ = evaluate("testdev")
    line = "not computed: consistency needs testdev_all_questions.json; validity and plausibility need testdev_choices"
    assert out.count(line) == 1 and "distribution" in scores and "consistency" not in scores
    out, scores, _ = evaluate("minval")
    assert "consistency, validity and plausibility: only available for the splits val and testdev" in out
    assert "consistency" not in scores and "steps" in scores["by"]


@pytest.mark.parametrize(("split", "file"), [("test", "test_balanced"), ("test_all", "test_all")])
def test_the_tests_have_no_scores(evaluate, tmp_path, split, file, world, trained, run_command):
    _, scores, submission = evaluate(split)
    asked = json.loads((tmp_path / "data" / "gqa" / f"{file}_questions.json").read_text())
    assert scores is None and [one["questionId"] for one in submission] == list(asked)
    assert set(submission[0]) == {"questionId", "prediction"}
    flags = ("--run", trained, "--data", world, "--workers", 0, "--task", "gqa", "--split", split)
    status, _, err = run_command("finetune.evaluate", *flags)
    assert status == 2 and f"--split {split}: no public answers; --submission FILE writes the predictions" in err


def test_testdev_is_the_test_that_is_reported(world, run_command):
    assert GQA.reported == ("testdev",) and GQA.is_test("submission")
    status, out, err = run_command("finetune.doctor", "--data", world, "--tasks", "gqa")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["testdev"][1] == "12578" and rows["test"][0] == "60" and rows["test"][2] == rows["test_all"][2] == "20"


def test_doctor_names_the_files_that_are_not_there(world, tmp_path, run_command):
    shutil.copytree(world / "gqa", tmp_path / "gqa")
    (tmp_path / "regions").symlink_to(world / "regions")
    for name in ("testdev_choices", "test_all_questions"):
        (tmp_path / "gqa" / f"{name}.json").unlink()
    status, out, _ = run_command("finetune.doctor", "--data", tmp_path, "--tasks", "gqa")
    assert status == 0 and "gqa: ready" in out
    lines = [line.strip() for line in out.splitlines() if "not found" in line]
    names = ("test_all_questions.json", "testdev_choices.json")
    assert [line.split("; see http")[0] for line in lines] == [
        *(f"not found: {name}" for name in names),
        "not usable: test_all: files not found",
    ]


def test_doctor_finds_that_testdev_has_no_answers(world, tmp_path, run_command):
    """Of copies without answers, as of the official test, only the images can be used."""
    shutil.copytree(world / "gqa", tmp_path / "gqa")
    (tmp_path / "regions").symlink_to(world / "regions")
    path = tmp_path / "gqa" / "testdev_balanced_questions.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps({key: record | {"answer": None} for key, record in records.items()}))
    status, out, _ = run_command("finetune.doctor", "--data", tmp_path, "--tasks", "gqa")
    problem = f"{path}, record {next(iter(records))}: no answer, although testdev has answers; download the file again"
    assert status == 0 and f"not usable: testdev: {problem}" in out and "  testdev " not in out
