"""The image stream of Visual7W and GuessWhat holds all given boxes of the image; the question's own are scored."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.annotations.example import Example
from finetune.data.regions import rows_of_boxes
from finetune.data.task_collate import TaskCollator
from finetune.heads.grounding_head import GroundingHead
from finetune.heads.inputs import TaskInputs
from finetune.heads.pointing_head import PADDING
from finetune.inference.attention_maps import explain
from finetune.inference.request import Query
from finetune.models.task_model import TaskModel
from finetune.objective.task_pass import TaskPass
from finetune.tasks import all_tasks
from pretrain.data.collate import Limits
from pretrain.models.model_config import TINY
from pretrain.models.precision import Precision
from pretrain.tokenizer.tokenizer import learn_tokenizer
from shards.storage.sample import Sample

TASKS = all_tasks()
WIDTH, HEIGHT, FEATURES = 200, 100, 12
TOKENIZER = learn_tokenizer(["which one is left of the red cat"], 300)


def make_sample(image: str, boxes: int, seed: int, ids: bool) -> Sample:
    """An image with so many random boxes, known by ids (100, 101, ...) or by where they lie."""
    rng = np.random.default_rng(seed)
    corner = rng.random((boxes, 2)) * 0.6
    return Sample(
        key=image,
        features=rng.normal(size=(boxes, FEATURES)).astype(np.float16),
        boxes=np.concatenate([corner, corner + 0.1 + 0.3 * rng.random((boxes, 2))], 1).astype(np.float32),
        info={"id": image, "width": WIDTH, "height": HEIGHT}
        | ({"box_ids": list(range(100, 100 + boxes))} if ids else {}),
    )


def make_case(name: str, ids: bool = True, boxes=(9, 3, 6)) -> TaskCollator:
    """Questions about three images with 9, 3 and 6 boxes, of which 3, 3 and 4 are candidates."""
    given = {str(n): make_sample(str(n), count, 10 + n, ids) for n, count in enumerate(boxes)}
    examples = []
    for n, rows in enumerate(([7, 2, 5], [0, 1, 2], [1, 5, 3, 0])):
        places = (given[str(n)].boxes[rows] * np.array([WIDTH, HEIGHT] * 2)).tolist()
        candidates, box_ids = tuple(map(tuple, places)), tuple(str(100 + row) for row in rows)
        examples.append(Example(n, "which one is left", (str(n),), 1, candidates, box_ids))
    return TaskCollator(
        task=TASKS[name],
        examples=examples,
        regions={str(n): make_sample(str(n), count, n, False) for n, count in enumerate((5, 8, 6))},
        tokenizer=TOKENIZER,
        limits=Limits(20, 100, FEATURES),
        boxes=given,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = TINY.replace(vocab_size=len(TOKENIZER), v_feature_size=FEATURES, task_tokens=20)
    model = TaskModel(sizes, {}).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large enough that it matters what is attended to
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def scores_of(model, collator) -> np.ndarray:
    """float64 (examples, candidates): what the model gives the candidates of all examples in one batch."""
    task_pass = TaskPass(model, collator.task, Precision("float64", torch.device("cpu")), collator.task.token)
    with torch.no_grad():
        return task_pass.logits(collator(0, np.arange(len(collator.examples)))).numpy()


def slow_scores(model, collator, example) -> list[float]:
    """The same of one example, without a batch: every row of the image is scored, and the candidates' rows are kept."""
    image, task = example.images[0], collator.task
    regions, given = collator.regions[image], collator.boxes[image]
    features = np.concatenate([regions.features, given.features]).astype(np.float64)
    features = np.concatenate([regions.features.astype(np.float64).mean(0, keepdims=True), features])
    boxes = np.concatenate([[[0, 0, 1, 1]], regions.boxes, given.boxes]).astype(np.float32)
    area = (boxes[:, 2:3] - boxes[:, :1]) * (boxes[:, 3:] - boxes[:, 1:2])
    ids = torch.tensor(collator.tokenizer.encode([example.text], task.max_tokens))
    inputs = TaskInputs(
        input_ids=ids,
        text_mask=torch.ones_like(ids, dtype=torch.bool),
        features=torch.from_numpy(features)[None],
        locations=torch.from_numpy(np.concatenate([boxes, area], 1)).double()[None],
        image_mask=torch.ones(1, len(boxes), dtype=torch.bool),
        task_ids=torch.tensor([task.token]),
    )
    with torch.no_grad():
        every_row = model(inputs, GroundingHead())[0].tolist()
    return [every_row[1 + len(regions.boxes) + int(key) - 100] for key in example.candidate_ids]


@pytest.mark.parametrize("ids", [True, False], ids=["by id", "by place"])
@pytest.mark.parametrize("name", ["visual7w", "guesswhat"])
def test_scores_are_those_of_a_stream_with_every_box_of_the_image(model, name, ids):
    """Boxes are known by id as shards.extract writes them, and by place as in published features."""
    collator = make_case(name, ids)
    found = scores_of(model, collator)
    assert found.shape == (3, 4)  # the other boxes are not scored
    for row, example in zip(found, collator.examples, strict=True):
        slow = slow_scores(model, collator, example)
        np.testing.assert_allclose(row[: len(slow)], slow, rtol=0, atol=1e-6)  # the mean of the regions is of float32
        assert (row[len(slow) :] == PADDING).all()


def test_the_other_boxes_are_attended_to_in_any_order(model):
    collator = make_case("visual7w")
    found, alone = (
        scores_of(model, collator),
        scores_of(model, replace(collator, task=replace(collator.task, max_boxes=0))),
    )
    assert np.abs(found - alone)[[0, 2], :3].min() > 1e-3
    np.testing.assert_allclose(found[1], alone[1], rtol=0, atol=1e-12)  # all boxes of this image are candidates
    order = np.random.default_rng(0).permutation(9)
    sample = collator.boxes["0"]
    info = sample.info | {"box_ids": [sample.info["box_ids"][row] for row in order]}
    shuffled = replace(sample, features=sample.features[order], boxes=sample.boxes[order], info=info)
    again = scores_of(model, replace(collator, boxes=collator.boxes | {"0": shuffled}))
    np.testing.assert_allclose(again, found, rtol=0, atol=1e-12)


def test_inputs_have_every_box_once_and_the_mean_of_the_regions_alone():
    collator = make_case("guesswhat")
    inputs = collator(0, np.arange(3)).inputs(17, torch.float64)
    assert inputs.image_count == inputs.image_mask.sum() == (1 + 5 + 9) + (1 + 8 + 3) + (1 + 6 + 6)
    for row, example in enumerate(collator.examples):
        image = example.images[0]
        regions, given = collator.regions[image].features, collator.boxes[image].features
        rows = inputs.features[row][inputs.image_mask[row]].numpy()
        np.testing.assert_allclose(rows[0], regions.astype(np.float64).mean(0), rtol=1e-6)
        expected = np.concatenate([regions, given]).astype(np.float64)
        np.testing.assert_array_equal(rows[1:][np.lexsort(rows[1:].T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize(("name", "room"), [("visual7w", 200 - 101), ("guesswhat", 306 - 101)])
def test_an_image_with_more_boxes_than_there_is_room_for_keeps_the_candidates(model, name, room):
    collator = make_case(name, boxes=(room + 30, 3, 6))
    batch = collator(0, np.arange(3))
    assert batch.candidates.valid.sum(1).tolist() == [3, 3, 4]
    assert batch.other_boxes.valid.sum(1).tolist() == [room - 3, 0, 2]
    few = replace(collator, task=replace(collator.task, max_boxes=2))  # fewer than the candidates themselves
    assert few(0, np.arange(3)).other_boxes is None and few(0, np.arange(3)).candidates.valid.sum() == 10


def test_boxes_at_one_place_are_each_taken_once():
    """Published features have no ids; two objects of a game may have the same box."""
    sample = make_sample("0", 4, 0, ids=False)
    sample.boxes[3] = sample.boxes[1]
    places = sample.boxes * np.array([WIDTH, HEIGHT] * 2)
    assert sorted(rows_of_boxes(sample, ("a", "b"), places[[3, 1]].tolist())) == [1, 3]
    assert rows_of_boxes(sample, ("a", "b", "c"), places[[1, 1, 1]].tolist()).tolist() == [1, 3, 1]


def test_dropout_of_a_row_does_not_depend_on_the_rest_of_the_batch():
    collator = make_case("guesswhat")
    batches = [collator(0, np.array(numbers)) for numbers in ([0], [0, 1, 2])]
    seen = []
    for batch in batches:
        inputs = batch.inputs(17, torch.float32)
        there = inputs.image_mask[0]
        assert len(inputs.image_positions.unique()) == len(inputs.image_positions)
        seen.append(dict(zip(inputs.image_positions[there].tolist(), inputs.features[0, there].tolist(), strict=True)))
    assert seen[0] == seen[1]


def test_a_question_about_an_image_of_the_data_has_its_other_boxes(model):
    """As finetune.attention asks it, by place; its explanation names every row of the image stream."""
    collator = make_case("visual7w", ids=False)
    example, task = collator.examples[0], collator.task
    samples, given = [collator.regions["0"]], collator.boxes["0"]
    query = Query(task, example.text, ["0"], [np.zeros((2, 2, 3), np.uint8)], samples, example.candidates, given)
    asked = query.collator(TOKENIZER, model.encoder.config)
    np.testing.assert_allclose(scores_of(model, asked)[0], scores_of(model, collator)[0, :3], rtol=0, atol=1e-12)
    task_pass = TaskPass(model, task, Precision("float64", torch.device("cpu")), task.token)
    (explained,) = explain(task_pass, asked(0, np.arange(1)), TOKENIZER)
    names = ["the whole image", *(f"region {n}" for n in range(5)), *(f"other box {n}" for n in range(6))]
    assert explained.rows == [*names, *(f"candidate {n}" for n in range(3))]
    rest = np.delete(given.boxes, [7, 2, 5], 0)
    np.testing.assert_allclose(explained.boxes[6:12], rest) and len(explained.boxes) == 15


def test_official_files_give_the_boxes_of_all_questions_of_an_image(tmp_path):
    """Of any split (Visual7W), and of all games (GuessWhat), each box once."""
    (tmp_path / "visual7w").mkdir()
    boxes = [{"box_id": n, "x": n, "y": 0, "width": 10, "height": 10, "name": "thing"} for n in range(9)]
    asked = {"train": ((1, [2, 3, 4]), (4, [5, 6, 1])), "val": ((7, [8, 2, 0]),), "test": ((0, [1, 2, 3]),)}
    images = [
        {
            "filename": f"v7w_{'1' if split == 'val' else split}.jpg" if split != "train" else "v7w_1.jpg",
            "split": split,
            "qa_pairs": [
                {"qa_id": len(split) * 10 + n, "question": "Which?", "answer": right, "multiple_choices": wrong}
                for n, (right, wrong) in enumerate(questions)
            ],
        }
        for split, questions in asked.items()
    ]
    (tmp_path / "visual7w" / "dataset_v7w_pointing.json").write_text(json.dumps({"boxes": boxes, "images": images}))
    found = TASKS["visual7w"].given_boxes(tmp_path / "visual7w")
    assert {image: sorted(map(int, known.boxes)) for image, known in found.items()} == {
        "v7w_1": [0, 1, 2, 3, 4, 5, 6, 7, 8],
        "v7w_test": [0, 1, 2, 3],
    }
    (tmp_path / "guesswhat").mkdir()
    for split, objects in (("train", (1, 2)), ("valid", (2, 3)), ("test", (4, 5))):
        games = [
            {
                "id": objects[0] * 10 + n,
                "status": "success",
                "image": {"id": 7 if split != "test" else 8, "width": 99, "height": 99},
                "objects": [{"id": thing, "bbox": [thing, 0, 5, 5]} for thing in objects],
                "object_id": objects[n],
                "qas": [],
            }
            for n in range(2)
        ]
        (tmp_path / "guesswhat" / f"guesswhat.{split}.jsonl").write_text("\n".join(map(json.dumps, games)))
    found = TASKS["guesswhat"].given_boxes(tmp_path / "guesswhat")
    assert {image: sorted(known.boxes) for image, known in found.items()} == {"7": ["1", "2", "3"], "8": ["4", "5"]}
    assert [known.size for known in found.values()] == [(99, 99)] * 2
