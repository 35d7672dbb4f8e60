"""One image and one text: the same answer as an evaluation of the same example from its shards gives."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.inference.embedder import Embedder
from finetune.inference.predictor import LazyPredictor, Predictor
from finetune.inference.request import parse_boxes
from finetune.tasks import paper_tasks
from shards.common.errors import UserError
from shards.common.image_id import image_id

TASKS = paper_tasks()


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


def image_file(world, task, image):
    folder = world / "images" / task.images
    return next(path for path in sorted(folder.glob("*.png")) if image_id(path.name) == image)


def evaluated(trained, world, task, examples):
    """What finetune.evaluate predicts of these examples."""
    from finetune.config import EvaluateConfig
    from finetune.inference.model_loader import load
    from finetune.inference.predictions import predict
    from shards.common.dist_info import ALONE

    config = EvaluateConfig(run=str(trained), data=str(world), workers=0)
    task_pass, collator = load(config, task, lambda data: examples)
    return predict(task_pass, collator, 8, 0, ALONE)


@pytest.mark.parametrize("name", [name for name in TASKS if not name.endswith("retrieval")])
def test_an_answer_is_the_one_of_an_evaluation(world, trained, predictor, name):
    task = TASKS[name]
    examples = task.read(world / name, task.splits[1])[:6]
    expected = evaluated(trained, world, task, examples)
    for example, right in zip(examples, expected, strict=True):
        files = [image_file(world, task, image) for image in example.images]
        found = predictor(name, example.text, *files, boxes=example.candidates)
        assert found.confidence == sorted(found.confidence, reverse=True) and 0 <= found.confidence[-1] <= 1
        if task.head.finds_regions:
            np.testing.assert_allclose(found.boxes[0], right, atol=0.01)
        elif task.head.has_candidates:
            assert found.choices[0] == f"candidate {right}" and found.boxes[0] == example.candidates[right]
        elif task.head.has_vocabulary:
            assert found.choices[0] == right
        else:
            assert found.choices[0] == task.labels[right]


def test_retrieval_ranks_the_images_that_are_given(world, trained, predictor):
    task = TASKS["coco_retrieval"]
    examples = task.read(world / "coco_retrieval", "val")
    images = list(dict.fromkeys(example.images[0] for example in examples))[:4]
    examples = [example for example in examples if example.images[0] in images]
    scores = evaluated(trained, world, task, examples)
    files = [image_file(world, task, image) for image in images]
    found = predictor("coco_retrieval", examples[0].text, *files)
    order = np.argsort(-scores[0], kind="stable")
    assert found.choices == [str(files[n]) for n in order] and sum(found.confidence) == pytest.approx(1)


def test_files_bytes_images_and_arrays_are_one(world, predictor):
    path = image_file(world, TASKS["vqa"], TASKS["vqa"].read(world / "vqa", "minval")[0].images[0])
    pixels = np.asarray(Image.open(path).convert("RGB"))
    alpha = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 7, np.uint8)], 2)
    ways = (path, path.read_bytes(), pixels, alpha, Image.open(path), Image.open(path).convert("RGBA"))
    first, *others = (predictor("vqa", "What is it?", way) for way in ways)
    assert all(other == first for other in others)
    grey = Image.open(path).convert("L")
    assert predictor("vqa", "What is it?", grey) == predictor("vqa", "What is it?", np.asarray(grey))


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((4, 4, 3)), r"images: an array of float64 \(4, 4, 3\); should be uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), "should be uint8"),
        (np.zeros((0, 4, 3), np.uint8), "should be uint8"),
        (np.zeros(4, np.uint8), "should be uint8"),
    ],
)
def test_arrays_that_are_no_images(predictor, image, complaint):
    with pytest.raises(UserError, match=complaint):
        predictor("vqa", "What is it?", image)


def test_errors_name_arguments(predictor, trained, tmp_path):
    image = np.zeros((9, 9, 3), np.uint8)
    for arguments, complaint in (
        (("vqa", " ", image), "the text is empty (text)"),
        (("visual7w", "Which?", image), "visual7w: needs candidate boxes (boxes)"),
        (("captioning", "a", image), "task captioning: should be one of vqa"),
    ):
        with pytest.raises(UserError) as raised:
            predictor(*arguments)
        assert str(raised.value).startswith(complaint) and "--" not in str(raised.value)
    with pytest.raises(UserError, match=r"^run .*: "):
        Predictor(tmp_path / "no-such-run", region_shards=Path(trained) / "detector")


def test_all_is_loaded_when_it_is_made(trained):
    assert {"detector", "model", "source", "vocabularies"} <= vars(Predictor(trained)).keys()


def test_the_command(world, trained, run_command):
    path = image_file(world, TASKS["vqa"], TASKS["vqa"].read(world / "vqa", "minval")[0].images[0])
    flags = ("finetune.predict", path, "--run", trained, "--top", 3)
    status, said, err = run_command(*flags, "--task", "refcoco", "--text", "the red thing")
    assert status == 0 and len(said.splitlines()) == 3 and " at " in said, err
    status, said, err = run_command(*flags, "--task", "visual7w", "--text", "Which?", "--boxes", "1,2,30,40; 5,6,70,80")
    assert status == 0 and "candidate 1" in said and "at 5, 6, 70, 80" in said, err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--task", "vqa", "--text", " "), "the text is empty (--text)"),
        (("--task", "nlvr2", "--text", "Both."), "nlvr2: takes 2 images; 1 were given"),
        (("--task", "flickr_retrieval", "--text", "a"), "flickr_retrieval: ranks images; give two or more"),
        (("--task", "visual7w", "--text", "Which?"), "visual7w: needs candidate boxes (--boxes)"),
        (("--task", "vqa", "--text", "a", "--boxes", "1,2,3,4"), "vqa: takes no candidate boxes (--boxes)"),
        (("--task", "vqa", "--text", "a", "--boxes", "1,2,3"), "--boxes 1,2,3: should be four numbers"),
        (("--task", "vqa", "--text", "a", "--boxes", "5,2,3,4"), "has no area"),
        (("--task", "visual7w", "--text", "a", "--boxes", "nan,nan,nan,nan"), "should be four numbers of pixels"),
        (("--task", "visual7w", "--text", "a", "--boxes", "0,0,1e30,9"), "should be four numbers of pixels"),
        (("--task", "vqa", "--text", "a" * 10_001), "the text has 10001 characters; at most 10000"),
        (("--task", "vqa", "--text", "what \ud800?"), "a lone surrogate"),
        (("--task", "captioning", "--text", "a"), "--task captioning: should be one of vqa"),
        (("--task", "vqa", "--text", "a", "--region_shards", "nowhere"), "nowhere: contains no finished region shards"),
    ],
)
def test_mistakes(world, trained, run_command, flags, complaint):
    path = next((world / "images" / "coco").glob("*.png"))
    status, _, err = run_command("finetune.predict", path, "--run", trained, *flags)
    assert status == 2 and complaint in err and "Traceback" not in err


def test_hostile_files_are_told_in_a_sentence(trained, tmp_path, run_command):
    (tmp_path / "a.png").write_text("no image")
    for name, complaint in (("a.png", "a.png: "), ("b.png", "b.png: cannot be read")):
        status, _, err = run_command(
            "finetune.predict", tmp_path / name, "--run", trained, "--task", "vqa", "--text", "What?"
        )
        assert status == 2 and complaint in err and "Traceback" not in err


def test_a_folder_that_is_no_run(tmp_path, pretrained, world):
    with pytest.raises(UserError, match=r"contains pretraining weights, .*; fine-tune it on vqa first"):
        Predictor(pretrained)("vqa", "What?", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"^run .*: contains no complete checkpoint and no weights"):
        Predictor(tmp_path, data=world)("vqa", "What?", np.zeros((9, 9, 3), np.uint8))


def test_converted_regions_have_no_detector(trained, tmp_path):
    (tmp_path / "dataset.json").write_text('{"feature_size": 8, "extra": {"plan": {"command": "shards.convert"}}}')
    with pytest.raises(UserError, match="regions were converted, without a detector"):
        Predictor(trained, region_shards=tmp_path)


def test_the_former_name_of_the_region_shards_is_accepted(trained, world, run_command):
    shards = world / "regions" / "pairs"
    with pytest.warns(FutureWarning, match=r"^regions is deprecated .*; use region_shards$") as warned:
        assert Predictor(trained, regions=shards).regions == shards
    assert warned[0].filename == __file__
    with pytest.warns(FutureWarning, match=r"; use region_shards$") as warned:
        assert Embedder(trained, regions=str(shards))._model.regions == shards
    assert warned[0].filename == __file__
    with pytest.raises(UserError, match=r"^regions .*: former name of region_shards, which is also given"):
        Predictor(trained, region_shards=shards, regions=shards)
    path = next((world / "images" / "coco").glob("*.png"))
    asked = ("finetune.predict", path, "--run", trained, "--task", "vqa", "--text", "What?", "--top", 3)
    status, said, err = run_command(*asked, "--regions", shards)
    assert status == 0 and "--regions is deprecated and will be removed after version 1; use --region_shards" in err
    assert run_command(*asked, "--region_shards", shards) == (0, said, "")


def test_boxes_as_text():
    assert parse_boxes(None) == [] and parse_boxes("1,2,3,4;0.5,0,9,9") == [(1, 2, 3, 4), (0.5, 0, 9, 9)]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The tasks and images of commands on tmp_path, a run of vqa without weights."""
    calls = []
    for name in ("__call__", "query"):
        monkeypatch.setattr(LazyPredictor, name, lambda self, task, text, *images, **_: calls.append((task, images)))
    monkeypatch.setattr("finetune.pages.attention_page.page_of", lambda predictor, query: "")
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"task": "vqa"}, "tasks": ["vqa"]}))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("command", ["finetune.predict", "finetune.attention"])
def test_the_name_of_an_image_may_contain_commas(asked, run_command, command):
    for name in ("a,b.png", "a", "b.png", "c.png"):
        Path(name).touch()
    for image, expected in (("a,b.png", ("a,b.png",)), ("c.png,a", ("c.png", "a"))):
        assert run_command(command, "--image", image, "--run", ".", "--task", "vqa", "--text", "x")[0] == 0
        assert asked.pop() == ("vqa", expected)


@pytest.mark.parametrize("command", ["finetune.predict", "finetune.attention"])
def test_the_only_task_of_a_run_is_the_default(asked, tmp_path, run_command, command):
    Path("a.png").touch()
    flags = (command, "--image", "a.png", "--run", ".", "--text", "x")
    assert run_command(*flags)[0] == 0 and asked == [("vqa", ("a.png",))]
    Path("config.json").write_text(json.dumps({"flags": {}, "tasks": ["vqa", "gqa"]}))
    status, _, err = run_command(*flags)
    assert status == 2 and err == "error: --task is missing; it should be one of vqa, gqa\n"
