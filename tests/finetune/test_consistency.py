"""Grounding consistency: the formula by hand, the words, and the command on runs of many tasks and of one."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.annotations.answers import vqa_accuracy
from finetune.config import ConsistencyConfig
from finetune.evaluation.grounding_consistency import ImageAgreement, both_forms, consistency, shared_words
from finetune.evaluation.pos_tagger import make_tagger
from finetune.pages.consistency_page import SharedPair, choose_pairs
from finetune.reporting.consistency_table import warn_if_not_cleaned
from finetune.tasks import all_tasks
from shards.common.errors import UserError


def image(shared, answered, found) -> ImageAgreement:
    return ImageAgreement(np.array(shared), np.array(answered, float), np.array(found, float))


def test_three_images_by_hand():
    """d of an image's pairs, times the question's accuracy and the expression's; over the sum of d.

    1: (2 x 1 x 1 + 1 x 1 x 0) + (0 + 3 x 0.3 x 0) = 2 of 6. 2: 1 x 0.6 x 1 = 0.6 of 1. 3: 0 of 0, so it adds nothing.
    """
    images = [image([[2, 1], [0, 3]], [1, 0.3], [1, 0]), image([[1]], [0.6], [1]), image([[0]], [1], [1])]
    found = consistency(images)
    assert found.score == pytest.approx(2.6 / 7)
    assert (found.images, found.pairs) == (3, 4)
    assert found.answered == pytest.approx((1 + 0.3 + 0.6 + 1) / 4) and found.found == pytest.approx(3 / 4)
    by_answered, by_found = (2 + 1 + 3 * 0.3 + 0.6) / 7, (2 + 1) / 7
    assert found.independent == pytest.approx(by_answered * by_found)
    low, high = found.interval
    assert low <= found.score <= high


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.frozensets(st.sampled_from("abcd")), st.sampled_from([0, 0.3, 1])), min_size=1),
            st.lists(st.tuples(st.frozensets(st.sampled_from("abcd")), st.sampled_from([0, 1])), min_size=1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_score_equals_the_obvious_sum(data):
    images, over, under = [], 0.0, 0
    for questions, expressions in data:
        images.append(
            ImageAgreement(
                shared_words([words for words, _ in questions], [words for words, _ in expressions]),
                np.array([float(right) for _, right in questions]),
                np.array([float(right) for _, right in expressions]),
            )
        )
        for asked, answered in questions:
            for named, found in expressions:
                over += len(asked & named) * answered * found
                under += len(asked & named)
    if under:
        assert consistency(images).score == pytest.approx(over / under)
    else:
        with pytest.raises(UserError, match="share a noun or an adjective"):
            consistency(images)


def obvious_score(images, y) -> float:
    """Equation 5 pair by pair; y: of a question's VQA accuracy."""
    over, under = 0.0, 0
    for one in images:
        for q, answered in enumerate(one.answered):
            for r, found in enumerate(one.found):
                over += one.shared[q, r] * y(answered) * found
                under += one.shared[q, r]
    return over / under


def test_a_question_is_answered_from_the_threshold_on():
    """VQA's accuracies are 0, 0.3, 0.6, 0.9 and 1; those of at least the threshold count as one, the others as none."""
    rng = np.random.default_rng(0)
    ten = [["a"] * count + ["b", "c", "d", "e"] * 3 for count in range(5)]
    values = [vqa_accuracy("a", answers[:10]) for answers in ten]
    assert values == pytest.approx([0, 0.3, 0.6, 0.9, 1])
    images = [image(rng.integers(0, 3, (4, 3)), rng.choice(values, 4), rng.integers(0, 2, 3)) for _ in range(30)]
    forms = both_forms(images)
    assert forms["threshold"].score == pytest.approx(obvious_score(images, lambda accuracy: accuracy > 0.45))
    assert forms["fractional"].score == pytest.approx(obvious_score(images, lambda accuracy: accuracy))
    assert forms["fractional"] == consistency(images) and forms["threshold"].score != forms["fractional"].score
    for threshold, least in ((0.3, 0.29), (0.6, 0.59), (0.61, 0.89), (1.0, 0.99)):
        found = both_forms(images, threshold)["threshold"]
        assert found.score == pytest.approx(obvious_score(images, lambda accuracy, least=least: accuracy > least))
        assert found.answered == pytest.approx(np.mean([one.answered > least for one in images]))


def test_no_image_says_so():
    with pytest.raises(UserError, match="no image has both"):
        consistency([])


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("What color are the man's shoes?", {"color", "man", "shoe"}),
        ("Are there two small red circles in the picture?", {"small", "red", "circle", "picture"}),
        ("woman in a blue skirt holding two dogs", {"woman", "blue", "skirt", "dog"}),
        ("", set()),
        ("???", set()),
    ],
)
def test_lemmas_of_nouns_and_adjectives(sentence, words):
    assert make_tagger("hanta")(sentence) == words


def test_the_tagger_knows_the_worlds_words(world):
    """Each sentence has the shapes, colours and sizes that it names, in the singular, and no verb or article."""
    from shards.world.captions import NOUNS
    from shards.world.scenes import COLOURS

    tag, singular = make_tagger("hanta"), {noun for names in NOUNS.values() for noun in names if " " not in noun}
    texts = {e.text for e in all_tasks()["vqa"].examples(world / "vqa", "train")}
    assert len(texts) > 50
    wrong = 0
    for text in texts:
        words = re.findall("[a-z]+", text.lower())
        named = {w for w in words if w in singular or w in COLOURS}
        named |= {w.removesuffix("s") for w in words if w.removesuffix("s") in singular}
        found = tag(text)
        wrong += not named <= found or bool(found & {"the", "is", "be", "what", "there", "how", "do"})
    assert wrong <= 0.03 * len(texts)


def test_a_tagger_that_is_not_there():
    with pytest.raises(UserError, match="--tagger en_core_web_zz: "):
        make_tagger("en_core_web_zz")


def pair(name: str, words: str, answered: float, found: float) -> SharedPair:
    return SharedPair(name, tuple(words), "q", "a", "a", answered, "e", (0, 0, 1, 1), (0, 0, 1, 1), found)


def test_pairs_that_share_most_come_first_and_an_image_once():
    pairs = [pair("1", "a", 1, 1), pair("1", "ab", 1, 1), pair("2", "abc", 1, 1), pair("3", "abcd", 1, 0)]
    pairs += [pair("4", "a", 0, 1), pair("5", "abcdef", 0, 0), pair("6", "abcdef", 0.3, 0)]
    agreeing, differing = choose_pairs(pairs, 2)
    assert [(p.image, len(p.words)) for p in agreeing] == [("2", 3), ("1", 2)]
    assert [p.image for p in differing] == ["3", "4"]
    assert choose_pairs(pairs, 1)[0] == agreeing[:1]


@pytest.fixture(scope="module")
def runs(world, pretrained, tmp_path_factory):
    """A run of many tasks, and two of one each."""
    from launching import python

    folder = tmp_path_factory.mktemp("runs")
    flags = ("--data", world, "--init", pretrained, "--workers", 0)
    done = [
        python("finetune.mt", *flags, "--tasks", "vqa,refcoco,refcoco+", "--iterations", 3, "--out", folder / "mt"),
        python("finetune.st", *flags, "--task", "vqa", "--epochs", 1, "--out", folder / "vqa"),
        python("finetune.st", *flags, "--task", "refcoco", "--epochs", 1, "--out", folder / "refcoco"),
    ]
    assert all(one.returncode == 0 for one in done), [one.stderr for one in done]
    return folder


def test_a_run_of_many_tasks(world, runs, run_command):
    flags = ("finetune.consistency", "--data", world, "--workers", 0, "--run", runs / "mt")
    status, said, err = run_command(*flags)
    assert status == 0, err
    rows = json.loads((runs / "mt" / "consistency" / "consistency.json").read_text())
    assert list(rows) == ["RefCOCO", "RefCOCO+", "both"] and "trained without --clean" in said
    tag, tasks = make_tagger("hanta"), all_tasks()
    questions = [e for s in ("train", "val") for e in tasks["vqa"].examples(world / "vqa", s)]
    pointed_at = set()
    for name in ("refcoco", "refcoco+"):
        expressions = [e for s in ("testA", "testB") for e in tasks[name].examples(world / name, s)]
        sharing = [(q, r) for q in questions for r in expressions if q.images == r.images and tag(q.text) & tag(r.text)]
        row = rows[tasks[name].title]
        pointed_at |= {r.images for r in expressions}
        assert row["pairs"] == len(sharing) > 0 and 0 <= row["score"] <= 1
        assert row["form"] == "threshold" and row["threshold_accuracy"] == 0.5
        for form in ("threshold", "fractional"):
            assert f"{row[form]['score']:.1%} " in said and f"{row[form]['independent']:.1%} " in said
        assert row["score"] == row["threshold"]["score"]
        assert row["images"] == len({q.images for q in questions} & {r.images for r in expressions})
    assert rows["both"]["pairs"] == rows["RefCOCO"]["pairs"] + rows["RefCOCO+"]["pairs"]
    assert rows["both"]["images"] == len({q.images for q in questions} & pointed_at)
    page = (runs / "mt" / "consistency" / "pairs.html").read_text()
    assert page.startswith("<!doctype html>") and ("data:image/jpeg" in page or "No pairs." in page)


def test_a_run_whose_name_has_a_comma_is_checked_too(tmp_path, capsys):
    for name in ("clean", "a,b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"flags": {"clean": name == "clean"}}))
    config = ConsistencyConfig(run=str(tmp_path / "clean"), grounding=str(tmp_path / "a,b"))
    warn_if_not_cleaned(config)
    assert f"warning: {tmp_path / 'a,b'}: trained without --clean" in capsys.readouterr().out


def test_two_runs_of_one_task_each(world, runs, run_command, tmp_path):
    flags = ("finetune.consistency", "--data", world, "--workers", 0, "--out", tmp_path, "--run", runs / "vqa")
    status, said, err = run_command(*flags, "--grounding", runs / "refcoco")
    assert status == 0, err
    first = json.loads((tmp_path / "consistency.json").read_text())
    assert list(first) == ["RefCOCO"] and said.index("at least 0.5, else 0") < said.index("y(q) = VQA accuracy (fract")
    status, said, err = run_command(*flags, "--grounding", runs / "refcoco", "--fractional", "true", "--threshold", 0.3)
    assert status == 0, err
    row = json.loads((tmp_path / "consistency.json").read_text())["RefCOCO"]
    assert row["fractional"] == first["RefCOCO"]["fractional"] and row["score"] == row["fractional"]["score"]
    assert row["form"] == "fractional" and row["threshold_accuracy"] == 0.3
    assert said.index("y(q) = VQA accuracy (fract") < said.index("at least 0.3, else 0")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--run", "vqa"), "no run was trained on refcoco or refcoco+; give such runs by --grounding"),
        (("--run", "refcoco"), "was trained on refcoco; fine-tune it on vqa first"),
        (("--run", "mt", "--questions", "train"), "no image has both questions"),
        (("--run", "mt", "--questions", "test"), "contains questions without public answers"),
        (("--run", "mt", "--expressions", "test"), "--split test: refcoco has train, val, testA, testB"),
        (("--run", "mt", "--tagger", "nothing"), "--tagger nothing: "),
        (("--run", "mt", "--threshold", "0"), "--threshold 0"),
    ],
)
def test_mistakes(world, runs, run_command, tmp_path, flags, complaint):
    flags = [runs / value if flag == "--run" else value for flag, value in zip(("", *flags), flags, strict=False)]
    command = ("finetune.consistency", "--data", world, "--workers", 0, "--out", tmp_path / "out")
    status, _, err = run_command(*command, *flags)
    assert status == 2 and complaint in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
