"""Scores, boxes and submissions against slow obvious versions and figures worked by hand."""

import json
from fractions import Fraction

import numpy as np
import official_files as files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from finetune.annotations.boxes import grounding_target, iou_with_box
from finetune.annotations.example import Example
from finetune.evaluation.bootstrap import (
    bootstrap_interval,
    bootstrap_means,
    bootstrap_ratios,
    clusters_of,
    interval_of,
)
from finetune.evaluation.scores import breakdown_of, load_values, render_breakdown, save_values, score_task
from finetune.heads.candidates_head import candidate_target
from finetune.heads.grounding_head import region_target
from finetune.tasks import all_tasks
from finetune.tasks.retrieval import caption_ranks, image_ranks, own_images
from shards.storage.sample import Sample

TASKS = all_tasks()
CORNERS = st.tuples(*[st.integers(0, 6)] * 4)


def exact_iou(a, b) -> Fraction:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return Fraction(width * height, union) if width * height > 0 and union > 0 else Fraction(0)


@settings(max_examples=300, deadline=None)
@given(st.lists(CORNERS, max_size=5), CORNERS)
def test_iou_is_the_exact_one(boxes, box):
    expected = [float(exact_iou(one, box)) for one in boxes]
    np.testing.assert_allclose(iou_with_box(np.array(boxes).reshape(-1, 4), box), expected, atol=1e-12)
    target = grounding_target(np.array(boxes).reshape(-1, 4), box)
    np.testing.assert_allclose(target, [value if value >= 0.5 else 0 for value in expected], rtol=1e-6)


def test_iou_is_in_float64_for_boxes_in_float32():
    """A difference of 1e-9 of the IoU is beyond float32."""
    found = iou_with_box(np.float32([[0, 0, 1000, 1000]]), (0, 0, 1000, 1000 + 1e-6))
    assert found.dtype == np.float64 and found[0] == pytest.approx(1 - 1e-9, abs=1e-12)


def test_a_region_is_a_target_from_one_half():
    """The evaluation is strict and the targets are not, as in the reference implementation."""
    boxes = np.array([[0, 0, 10, 5], [0, 0, 10, 4.9]])
    assert grounding_target(boxes, (0, 0, 10, 10)).tolist() == [0.5, 0]


def test_a_region_is_right_above_one_half():
    examples = [Example(n, "", ("1",), (0.0, 0.0, 10.0, 10.0)) for n in range(3)]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.1]])
    assert TASKS["refcoco"].scores(examples, boxes)["accuracy"].tolist() == [1, 0, 1]
    said = json.loads(TASKS["refcoco"].submission(examples, boxes))
    assert said[1] == {"sent_id": 1, "bbox": [0, 0, 10, 5]}


def test_the_target_of_regions_is_in_the_pixels_of_the_annotations():
    """Row 0 is the whole image; a shard may have been made of an image of another size; rows behind are padding."""
    boxes = np.array([[0, 0, 0.5, 1], [0, 0, 0.9, 0.8]], np.float32)
    sample = Sample("1", np.zeros((2, 3), np.float16), boxes, info={"width": 50, "height": 20})
    example = Example(7, "", ("1",), (0.0, 0.0, 90.0, 40.0), facts={"width": 100, "height": 40})
    assert region_target(example, sample, 5).tolist() == pytest.approx([0.9, 5 / 9, 0.8, 0, 0])
    unsized = Example(7, "", ("1",), (0.0, 0.0, 45.0, 20.0))
    assert region_target(unsized, sample, 2).tolist() == pytest.approx([0.9, 5 / 9])


def test_candidates():
    example = Example(7, "", ("1",), 1, ((0, 0, 4, 4), (0, 0, 4, 5), (9, 9, 10, 10)), ("a", "b", "c"))
    np.testing.assert_allclose(candidate_target(example), [0.8, 1, 0], rtol=1e-6)
    assert TASKS["guesswhat"].scores([example, example], [1, 2])["accuracy"].tolist() == [1, 0]
    assert json.loads(TASKS["visual7w"].submission([example], [2])) == [{"id": 7, "box_id": "c"}]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.randoms())
def test_recall_is_that_of_sorting_with_equals_before_one(captions_of, random):
    """Ties count against: everything that scores the same is thought to come first."""
    own = [image for image, count in enumerate(captions_of) for _ in range(count)]
    scores = np.array([[random.choice([0.0, 0.5, 1.0]) for _ in captions_of] for _ in own])
    slow_images = []
    for caption, image in enumerate(own):
        order = sorted(range(len(captions_of)), key=lambda other: (-scores[caption, other], other == image))
        slow_images.append(order.index(image))
    slow_captions = []
    for image in range(len(captions_of)):
        order = sorted(range(len(own)), key=lambda caption: (-scores[caption, image], own[caption] == image))
        slow_captions.append(next(place for place, caption in enumerate(order) if own[caption] == image))
    own = np.array(own)
    assert image_ranks(scores, own).tolist() == slow_images
    # Other captions of the same image are no rivals: only those of other images stand in the way.
    assert caption_ranks(scores, own).tolist() == slow_captions


def test_retrieval_in_both_directions():
    examples = [Example(n, "", (image,)) for n, image in enumerate("aabb")]
    assert own_images(examples).tolist() == [0, 0, 1, 1]
    scores = np.array([[3.0, 1.0], [0.0, 2.0], [5.0, 4.0], [0.0, 1.0]])
    found = TASKS["flickr_retrieval"].scores(examples, scores)
    assert found["R@1"].tolist() == [1, 0, 0, 1] and found["R@5"].tolist() == [1, 1, 1, 1]
    assert found["TR@1"].tolist() == [0, 1]
    assert json.loads(TASKS["flickr_retrieval"].submission(examples, scores))["1"] == ["b", "a"]


def test_a_constant_score_retrieves_nothing():
    examples = [Example(n, "", (str(n),)) for n in range(30)]
    found = TASKS["coco_retrieval"].scores(examples, np.zeros((30, 30)))
    assert found["R@10"].mean() == found["TR@10"].mean() == 0


def test_nlvr2s_consistency_by_hand():
    """Pairs 0 and 1 of sentence 0 are right, pair 1 of sentence 1 is wrong, and set 8 says the same as another set."""
    names = ["dev-7-0-0", "dev-7-1-0", "dev-7-0-1", "dev-7-1-1", "dev-8-0-0"]
    texts = ["x", "x", "y", "y", "y"]
    examples = [Example(name, texts[n], ("a", "b"), n % 2) for n, name in enumerate(names)]
    found = TASKS["nlvr2"].scores(examples, [0, 1, 0, 0, 0])
    assert found["accuracy"].mean() == pytest.approx(0.8)
    assert found["consistency"].tolist() == [1, 0, 1]
    assert TASKS["nlvr2"].submission(examples[:2], [0, 1]) == "dev-7-0-0,False\ndev-7-1-0,True\n"


def official_consistency(records: list[dict], predictions: dict[str, str]) -> float:
    """NLVR2's consistency by the official rule, from the official files' own records and a submission."""
    consistent: dict[str, bool] = {}
    for record in records:
        parts = record["identifier"].split("-")
        parts[2] = ""
        sentence = "-".join(parts)
        right = predictions[record["identifier"]].lower() == record["label"].lower()
        consistent[sentence] = consistent.get(sentence, True) and right
    return sum(consistent.values()) / len(consistent)


def check_consistency(folder, records: list[dict], wrong: float) -> float:
    """Compares NLVR2's scores on predictions of which a share is wrong with the official rule's; returns the score."""
    task, rng = TASKS["nlvr2"], np.random.default_rng(0)
    examples = task.read(folder, "dev")
    predictions = [int(one.target != (rng.random() < wrong)) for one in examples]
    said = dict(line.split(",") for line in task.submission(examples, predictions).splitlines())
    found = task.scores(examples, predictions)
    assert found["consistency"].mean() == official_consistency(records, said)
    assert found["accuracy"].mean() == np.mean([said[one["identifier"]] == one["label"] for one in records])
    return found["consistency"].mean()


def test_nlvr2s_consistency_is_the_official_one(tmp_path):
    """Sets that share a sentence's text, and sets with one or two sentences on one to four pairs of images."""
    rng = np.random.default_rng(1)
    records = [
        {"identifier": f"dev-{number}-{pair}-{sentence}", "sentence": f"There are {number % 5} dogs.", "label": label}
        for number in range(40)
        for sentence in range(1 + number % 2)
        for pair in range(1 + number % 4)
        for label in [str(bool(rng.random() < 0.5))]
    ]
    rng.shuffle(records)
    (tmp_path / "dev.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert 0.3 < check_consistency(tmp_path, records, 0.2) < 0.9


def test_nlvr2s_consistency_on_the_real_annotations(tmp_path, real_data):
    path = real_data / "annotations" / "nlvr2_dev.json"
    if not path.is_file():
        pytest.skip(f"NLVR2's annotations are not available ({path})")
    (tmp_path / "dev.json").symlink_to(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert 0.3 < check_consistency(tmp_path, records, 0.2) < 0.6
    examples = TASKS["nlvr2"].read(tmp_path, "dev")
    assert len(TASKS["nlvr2"].scores(examples, [0] * len(examples))["consistency"]) == 2018
    assert len({example.text for example in examples}) == 2004


def test_parts_of_a_score():
    facts = [{"answers": ["yes"] * 9 + ["no"], "answer_type": kind} for kind in ("yes/no", "other", "yes/no")]
    examples = [Example(n, "", ("1",), {}, facts=fact) for n, fact in enumerate(facts)]
    found = TASKS["vqa"].scores(examples, ["yes", "yes", "maybe"])
    assert list(found) == ["accuracy", "other", "yes/no"]
    assert [found[name].mean() for name in found] == pytest.approx([2 / 3, 1, 0.5])
    assert json.loads(TASKS["vqa"].submission(examples, ["a", "b", "c"]))[2] == {"question_id": 2, "answer": "c"}
    kinds = [Example(str(n), "", ("1",), {"yes": 1.0}, facts={"type": t}) for n, t in enumerate(["query", None])]
    found = TASKS["gqa"].scores(kinds, ["yes", "Yes"])
    assert found["accuracy"].tolist() == [1, 0] and found["query"].tolist() == [1]
    assert json.loads(TASKS["gqa"].submission(kinds, ["yes", "no"]))[0] == {"questionId": "0", "prediction": "yes"}
    labels = [Example(str(n), "", ("1",), n) for n in (0, 1, 2, 2)]
    found = TASKS["snli_ve"].scores(labels, [0, 0, 2, 1])
    assert {name: value.mean() for name, value in found.items()} == {
        "accuracy": 0.5,
        "contradiction": 1,
        "entailment": 0.5,
        "neutral": 0,
    }
    assert '"prediction": "entailment"' in TASKS["snli_ve"].submission(labels, [2, 2, 2, 2])


def test_vqas_accuracy_by_type_is_the_official_one(tmp_path):
    """Questions whose types are mixed in one file; some are asked of one image, and some types are rare."""
    rng, task = np.random.default_rng(3), TASKS["vqa"]
    files.vqa(tmp_path, questions=tuple(range(300)), split="val2014")
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text())
    answers, types = ["yes", "no", "2", "red"], ["is the", "how many", "what color is the", "none of the above", "why"]
    for record in annotations["annotations"]:
        record["question_type"] = types[min(int(rng.exponential(1.2)), 4)]
        record["answer_type"] = ["yes/no", "number", "other"][rng.integers(3)]
        record["answers"] = [{"answer": answers[rng.integers(4)], "answer_id": n} for n in range(1, 11)]
    path.write_text(json.dumps(annotations))
    examples = task.read(tmp_path, "val")
    predictions = [answers[rng.integers(4)] for _ in examples]
    said = {example.id: answer for example, answer in zip(examples, predictions, strict=True)}
    score = score_task(task, examples, predictions)
    by = breakdown_of(task, examples, score.values)["question type"]
    expected = files.vqa_accuracy_by_type(annotations, said, "question_type")
    assert len(expected) == 5 and {name: 100 * part["score"] for name, part in by.items()} == pytest.approx(expected)
    assert sum(part["examples"] for part in by.values()) == len(examples)
    for name, accuracy in files.vqa_accuracy_by_type(annotations, said, "answer_type").items():
        assert 100 * score.metrics[name] == pytest.approx(accuracy)
    assert not set(types) & set(score.metrics)  # so many are not reported at every validation
    text = render_breakdown("by question type", by).splitlines()
    assert text[2].split() == ["is", "the", f"{expected['is the']:.2f}", str(by["is the"]["examples"])]


def test_annotations_without_question_types_have_no_breakdown_by_them(tmp_path):
    files.vqa(tmp_path)
    path = tmp_path / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())
    for record in annotations["annotations"]:
        del record["question_type"]
    path.write_text(json.dumps(annotations))
    examples = TASKS["vqa"].read(tmp_path, "train")
    assert breakdown_of(TASKS["vqa"], examples, np.ones(len(examples))) == {}


def test_intervals_of_independent_examples_cover_what_they_say_they_do():
    """Of many samples of coin throws, about 95% have the true share within their interval."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = interval_of(bootstrap_means(rng.random(100) < 0.3, None, 400, seed))
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199
    assert interval_of(np.arange(1001)) == pytest.approx((25, 975))
    assert interval_of(np.arange(1001), 0.5) == pytest.approx((250, 750))
    assert bootstrap_interval(np.ones(5), None) == (1, 1)
    assert bootstrap_interval(np.arange(100), None) == bootstrap_interval(np.arange(100), np.arange(100))


@pytest.mark.parametrize("paired", [False, True], ids=["scores", "paired differences"])
def test_only_intervals_over_images_cover_scores_of_clustered_examples(paired):
    """300 images with 2 to 20 examples, whose difficulty is the image's: of many such samples, about 95% of the
    intervals over images contain the true mean, and about half of the intervals over examples do."""
    rng, trials = np.random.default_rng(1), 300
    covered = {"images": 0, "examples": 0}
    for seed in range(trials):
        clusters = np.repeat(np.arange(300), rng.integers(2, 21, 300))
        chance = rng.beta(0.6, 0.6, 300)[clusters]  # its mean is 0.5
        values = (rng.random(len(clusters)) < chance).astype(float)
        truth = 0.5
        if paired:  # another model, which is right with 0.9 times the chance
            values, truth = values - (rng.random(len(clusters)) < 0.9 * chance), 0.05
            values += rng.normal(0, 0.5, 300)[clusters]  # images that are easier for one of the two
        for name, of, draws in (("images", clusters, 400), ("examples", None, 200)):
            low, high = interval_of(bootstrap_means(values, of, draws, seed))
            covered[name] += low <= truth <= high
    assert 0.92 <= covered["images"] / trials <= 0.98
    assert covered["examples"] / trials < 0.65


def test_the_bootstrap_is_scipys():
    """On clusters of one example it is the ordinary bootstrap of a mean; on larger ones that of a ratio of sums."""
    rng, options = np.random.default_rng(2), {"method": "percentile", "n_resamples": 20000, "batch": 500}
    values = rng.random(80) ** 2
    theirs = stats.bootstrap((values,), np.mean, random_state=3, **options).confidence_interval
    ours = interval_of(bootstrap_means(values, np.arange(80), 20000, 4))
    np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))
    clusters = np.repeat(np.arange(80), rng.integers(1, 12, 80))
    values = values[clusters] + rng.random(len(clusters))
    sums = np.array([values[clusters == number].sum() for number in range(80)])
    sizes = np.array([(clusters == number).sum() for number in range(80)])

    def ratio(a, b, axis):
        return a.sum(axis) / b.sum(axis)

    theirs = stats.bootstrap((sums, sizes), ratio, paired=True, vectorized=True, random_state=5, **options)
    theirs = theirs.confidence_interval
    ours = interval_of(bootstrap_means(values, clusters, 20000, 6))
    np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))


def test_resampled_images_bring_all_their_examples():
    """Against a slow version that concatenates the examples of the images that were drawn."""
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(7), [1, 4, 2, 9, 1, 3, 5]))
    values = rng.random(len(clusters))
    drawn = np.random.default_rng(11).integers(0, 7, (50, 7))
    slow = [np.concatenate([values[clusters == number] for number in numbers]).mean() for numbers in drawn]
    np.testing.assert_allclose(bootstrap_means(values, clusters, 50, 11), slow)
    with pytest.raises(ValueError, match="25 values and clusters of 3"):
        bootstrap_means(values, np.arange(3))
    assert np.isnan(bootstrap_ratios([0.0, 0.0], [0, 0], 5)).all()


def test_examples_that_share_an_image_are_one_cluster():
    images = [("a",), ("b",), ("a",), ("c", "d"), ("e",), ("d", "f"), ("f",), ("b",)]
    assert clusters_of(images).tolist() == [0, 1, 0, 2, 3, 2, 2, 1]
    assert clusters_of((str(n),) for n in range(5)).tolist() == [0, 1, 2, 3, 4]


def test_scores_of_tasks_have_intervals_over_images(tmp_path):
    """Eighteen hypotheses per image, all right or all wrong: the interval is that of the images."""
    task = TASKS["snli_ve"]
    examples = [Example(f"{n}-{k}", "", (str(n),), 0) for n in range(30) for k in range(18)]
    right = np.random.default_rng(0).random(30) < 0.6
    score = score_task(task, examples, np.where(np.repeat(right, 18), 0, 1))
    expected = interval_of(bootstrap_means(right, None, seed=task.token))
    assert score.interval == pytest.approx(expected) and score.summary["interval"] == score.interval
    save_values(tmp_path / "values.npz", {"snli_ve": score})
    values, clusters = load_values(tmp_path / "values.npz")
    assert list(values) == ["snli_ve"] and values["snli_ve"].tolist() == score.values.tolist()
    assert clusters["snli_ve"].tolist() == np.repeat(np.arange(30), 18).tolist()
