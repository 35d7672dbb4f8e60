"""Attention maps of a batch, and the page that shows them, as a browser does."""

import json
import re

import numpy as np
import pytest
import torch

from finetune.inference.attention_maps import VIEWS, explain
from finetune.inference.predictor import Predictor
from finetune.inference.request import Query
from finetune.pages.attention_page import page_of
from finetune.tasks import paper_tasks
from pretrain.models.vilbert import AttentionMaps, initialise
from shards.common.errors import UserError

TASKS = paper_tasks()


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained)


def asked(predictor, world, name):
    """The query of the first example of a task, by the ids of its images."""
    task = TASKS[name]
    example = task.read(world / name, task.splits[1])[0]
    return predictor.query_by_id(name, example.text, *example.images, boxes=example.candidates)


@pytest.mark.parametrize("name", ["vqa", "refcoco", "visual7w", "nlvr2", "flickr_retrieval"])
def test_maps_are_the_models_own(predictor, world, name):
    query = asked(predictor, world, name)
    task_pass, batch = predictor.batch(query)
    found = explain(task_pass, batch, predictor.source.tokenizer)
    inputs, maps = task_pass.inputs(batch), AttentionMaps()
    with torch.no_grad():
        encoded = task_pass.model.encode(inputs, maps)
        torch.testing.assert_close(encoded.image, task_pass.model.encode(inputs).image, atol=1e-5, rtol=0)  # fused
    assert len(found) == len(query.names)
    for row, one in enumerate(found):
        assert len(one.words) == len(one.special) and len(one.rows) == len(one.boxes)
        assert one.words[:2] == ["[CLS]", f"[{name}]"] and one.special[:2] == [True, True] and one.words[-1] == "[SEP]"
        sizes = {"S": len(one.words), "I": len(one.rows)}
        for view, weights in one.maps.items():
            own = torch.stack(getattr(maps, VIEWS[view]))[:, row].numpy()
            np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
            assert weights.shape[2:] == (sizes[view[0]], sizes[view[-1]])
            np.testing.assert_array_equal(weights, own[:, :, : sizes[view[0]], : sizes[view[-1]]])


def test_padding_is_left_out(predictor, world):
    """Two images of one batch, the first with fewer regions, are explained as each is alone."""
    both = asked(predictor, world, "nlvr2")
    both.samples[0].features, both.samples[0].boxes = both.samples[0].features[:5], both.samples[0].boxes[:5]
    task_pass, batch = predictor.batch(both)
    one, other = explain(task_pass, batch, predictor.source.tokenizer)
    assert one.rows == ["the whole image", *(f"region {n}" for n in range(5))] and len(other.rows) > 6
    both.samples = both.samples[:1]
    (alone,) = explain(*predictor.batch(both), predictor.source.tokenizer)
    for view in VIEWS:
        np.testing.assert_allclose(one.maps[view], alone.maps[view], atol=1e-6)


@pytest.fixture(scope="module")
def page(predictor, world, tmp_path_factory):
    """(a page's path, what it explains, what is asked)."""
    path = tmp_path_factory.mktemp("pages") / "attention.html"
    query = asked(predictor, world, "refcoco")
    path.write_text(page_of(predictor, query), encoding="utf-8")
    task_pass, batch = predictor.batch(query)
    return path, explain(task_pass, batch, predictor.source.tokenizer)[0], query


def brightness(opened) -> dict[int, float]:
    """Region -> how little it is darkened."""
    rects = opened.locator("#unlit rect").all()[1:]
    boxes = {tuple(json.loads(opened.evaluate(PLACE, rect.element_handle()))): rect for rect in rects}
    found = {}
    for region in opened.locator("#image .region").all():
        place = tuple(json.loads(opened.evaluate(PLACE, region.element_handle())))
        if place in boxes:
            found[int(region.get_attribute("data-number"))] = 255 - int(
                boxes[place].get_attribute("fill")[4:].split(",")[0]
            )
    return found


PLACE = "e => JSON.stringify(['x', 'y', 'width', 'height'].map(n => e.getAttribute(n)))"


def test_a_word_lights_up_its_regions_and_other_words(page, look):
    path, explained, _ = page
    opened = look(path)
    word = next(number for number, special in enumerate(explained.special) if not special)
    opened.hover(f".word >> nth={word}")
    weights = explained.maps["S->I"][-1].mean(0)[word][1:]
    shown = brightness(opened)
    expected = 255 * weights / weights.max()
    assert all(abs(value - expected[number - 1]) <= 2 for number, value in shown.items() if number)
    own = explained.maps["S->S"][-1].mean(0)[word]
    lit = [float(one.evaluate("e => e.style.getPropertyValue('--weight')")) for one in opened.locator(".word").all()]
    np.testing.assert_allclose(lit, own / own.max(), atol=1e-3)
    assert (
        f"“{explained.words[word]}” attends to {explained.rows[explained.maps['S->I'][-1].mean(0)[word].argmax()]}"
        in (opened.inner_text("#summary"))
    )
    assert opened.problems == []


def test_a_region_lights_up_its_words_by_the_chosen_layer_and_head(page, look):
    path, explained, _ = page
    opened = look(path)
    opened.select_option("select[data-kind=co][data-name=layer]", "0")
    opened.select_option("select[data-kind=co][data-name=head]", "1")
    opened.locator("#image .region[data-number='2']").focus()
    own = explained.maps["I->S"][0, 1, 2]
    lit = [float(one.evaluate("e => e.style.getPropertyValue('--weight')")) for one in opened.locator(".word").all()]
    np.testing.assert_allclose(lit, own / own.max(), atol=1e-3)
    assert opened.inner_text("#summary").startswith("region 1 attends to")
    assert opened.problems == []


def test_regions_are_labelled_by_their_most_attended_word(page, look):
    path, explained, _ = page
    opened = look(path)
    opened.check("#labels")
    weights = np.where(explained.special, -1, explained.maps["I->S"][-1].mean(0))
    expected = [explained.words[weights[row].argmax()] for row in range(1, min(13, len(explained.rows)))]
    assert [one.text_content() for one in opened.locator("#over text").all()] == expected
    opened.fill("#shown", "3")
    assert opened.locator("#over text").count() == 3


def test_four_views_of_any_layer_and_head(page, look):
    path, explained, _ = page
    opened = look(path)
    for view, left, right in (("S->S", "words", "words"), ("S->I", "words", "rows"), ("I->S", "rows", "words")):
        opened.click(f"#tabs button[value='{view}']")
        for side, name in (("left", left), ("right", right)):
            texts = [one.text_content() for one in opened.locator(f"#panel #{side} text").all()]
            assert texts == getattr(explained, name)
        layers, heads, looking, seen = explained.maps[view].shape
        assert opened.locator("#panel #layer option").count() == layers
        assert opened.locator("#panel .headAttention").count() == heads
        assert opened.locator("#panel #attention line").count() == heads * looking * seen
    opened.click("#tabs button[value='I->I']")
    box = opened.locator("#panel canvas").bounding_box()
    opened.mouse.move(box["x"] + box["width"] - 2, box["y"] + 2)
    share = explained.maps["I->I"][-1].mean(0)[0, -1]
    assert opened.inner_text("#panel p").startswith(f"the whole image attends to {explained.rows[-1]}: ")
    assert float(opened.inner_text("#panel p").split(": ")[1].rstrip("%")) == pytest.approx(100 * share, abs=0.5)
    assert opened.problems == []


def test_the_page_needs_no_network_and_shows_what_the_model_says(page, look, predictor):
    path, _, query = page
    opened = look(path, offline=True, color_scheme="dark")
    said = predictor.answer(query)
    assert opened.locator("#prediction li").first.text_content().endswith(said.choices[0])
    assert opened.locator("#image .chosen").count() == 1
    assert opened.problems == [] and opened.excess_on_a_phone() == 0


def expressions_of(page: str) -> list:
    """The box of the text as a referring expression in each image of a page, as shares of the image."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1))
    return [image["expression"] for image in data["images"]]


@pytest.fixture(scope="module")
def random_predictor(trained):
    """A predictor with large random weights: its boxes depend on every word and the task token, which those of four
    iterations hardly do."""
    predictor = Predictor(trained)
    torch.manual_seed(0)
    initialise(predictor.model, 0.5)
    return predictor


@pytest.mark.parametrize("name", TASKS)
def test_the_box_of_the_text_as_an_expression_is_drawn_for_every_task(random_predictor, world, name):
    """As finetune.predict --task refcoco gives it for the same text and image, one image at a time."""
    predictor, query = random_predictor, asked(random_predictor, world, name)
    found = expressions_of(page_of(predictor, query, lines=False))
    if TASKS[name].head.finds_regions:  # whose prediction is drawn
        assert found == [None]
        return
    assert len(found) == len(query.names)
    for box, image, pixels, sample in zip(found, query.names, query.pixels, query.samples, strict=True):
        alone = Query(TASKS["refcoco"], query.text, [image], [pixels], [sample])
        expected = np.array(predictor.answer(alone, top=1).boxes[0]) / np.array(alone.size * 2)
        np.testing.assert_allclose(box, expected, atol=1e-4)


def test_a_run_without_referring_expressions_draws_no_box_of_them(predictor, world, monkeypatch):
    query = asked(predictor, world, "vqa")
    monkeypatch.setitem(predictor.source.weights.run_config, "tasks", ["vqa", "visual7w"])
    assert expressions_of(page_of(predictor, query, lines=False)) == [None]


def test_a_page_of_an_example_draws_the_box_of_its_text(predictor, trained, world, tmp_path, run_command):
    flags = ("--run", trained, "--data", world, "--task", "snli_ve", "--count", 1, "--out", tmp_path / "e.html")
    status, _, err = run_command("finetune.examples", *flags)
    assert status == 0, err
    pages = sorted((tmp_path / "e-attention").glob("snli_ve-*.html"))
    examples = TASKS["snli_ve"].read(world / "snli_ve", TASKS["snli_ve"].splits[1])
    assert pages
    for page in pages:
        example = examples[int(page.stem.rsplit("-", 1)[-1])]
        query = predictor.query_by_id("snli_ve", example.text, *example.images)
        assert expressions_of(page.read_text(encoding="utf-8")) == expressions_of(page_of(predictor, query))


def test_a_browser_shows_the_box_of_the_text_and_what_it_is(predictor, world, look, tmp_path):
    query = asked(predictor, world, "vqa")
    (tmp_path / "a.html").write_text(page_of(predictor, query, lines=False), encoding="utf-8")
    opened = look(tmp_path / "a.html")
    rect = opened.locator("#image rect.expression")
    place = [float(rect.get_attribute(name)) for name in ("x", "y", "width", "height")]
    height, width = query.pixels[0].shape[:2]
    x1, y1, x2, y2 = expressions_of(page_of(predictor, query, lines=False))[0]
    expected = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
    assert place == pytest.approx(expected, abs=0.01)
    assert opened.locator("#expression").is_visible() and not opened.locator("#chosen").is_visible()
    assert opened.problems == []


def test_two_images_have_a_view_each(predictor, world, look, tmp_path):
    query = asked(predictor, world, "nlvr2")
    (tmp_path / "a.html").write_text(page_of(predictor, query), encoding="utf-8")
    opened = look(tmp_path / "a.html")
    assert opened.get_attribute("#image", "aria-label") == f"image {query.names[0]}"
    opened.click("#which button >> nth=1")
    assert opened.get_attribute("#image", "aria-label") == f"image {query.names[1]}"
    assert opened.problems == []


def test_the_command_takes_ids_and_files(world, trained, tmp_path, run_command):
    task = TASKS["vqa"]
    image = task.read(world / "vqa", "minval")[0].images[0]
    flags = ("finetune.attention", "--run", trained, "--task", "vqa", "--out", tmp_path / "a.html")
    for given in (image, next((world / "images" / "coco").glob("*.png"))):
        status, said, err = run_command(*flags, "--image", given, "--text", "What is </script> it?")
        assert status == 0 and "page: " in said, err
        assert "</script> it?" not in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--image", "no-image", "--task", "vqa"), "no-image: is neither a file nor the id of an image in"),
        (("--image", "9", "--task", "nlvr2"), "nlvr2: takes 2 images; 1 were given"),
        (("--image", "9", "--task", "visual7w"), "visual7w: needs candidate boxes (--boxes)"),
    ],
)
def test_mistakes(trained, run_command, flags, complaint):
    status, _, err = run_command("finetune.attention", "--run", trained, "--text", "What?", *flags)
    assert status == 2 and complaint in err and "Traceback" not in err


def test_retrieval_with_one_image_is_explained_and_not_ranked(predictor, world):
    query = asked(predictor, world, "coco_retrieval")
    assert '"prediction":[]' in page_of(predictor, query)
    with pytest.raises(UserError, match="ranks images; give two or more"):
        predictor("coco_retrieval", "a star", query.pixels[0])


def test_inspect_takes_the_same_ids(world, tmp_path, run_command):
    image = TASKS["vqa"].read(world / "vqa", "minval")[0].images[0]
    flags = (world / "regions" / "coco", "--picture", tmp_path / "a.png")
    status, said, err = run_command("shards.inspect", *flags, "--image", image)
    assert status == 0 and f" {image}: " in said, err
    status, _, err = run_command("shards.inspect", *flags, "--image", "no-image")
    assert status == 2 and "--image no-image: no such image id" in err
