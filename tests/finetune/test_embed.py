"""finetune.embed: what it stores, and the page that shows it in a plane."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from finetune.embed import EmbedConfig, check
from finetune.inference.embedder import Embedder
from finetune.inference.embedding_files import embed_images, write_arrays
from finetune.inference.principal_components import principal_plane
from finetune.pages.embedding_page import views_of
from finetune.tasks import find_task
from shards.common.errors import UserError
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def stored(world):
    """id -> captions of the region shards of pretraining."""
    reader = RegionReader(open_dataset(str(world / "regions" / "pairs")))
    return {reader[n].info["id"]: reader[n].captions for n in range(len(reader))}


@pytest.fixture
def embed(run_command, world, tmp_path):
    def call(run, *flags):
        status, out, err = run_command("finetune.embed", "--run", run, *flags)
        assert status == 0, err
        return out

    return call


def test_captions_are_embedded_with_their_images(embed, contrastive, world, stored, tmp_path):
    page, file = tmp_path / "plane.html", tmp_path / "e.npz"
    shards = world / "regions" / "pairs"
    out = embed(contrastive, "--images", shards, "--captions", 1, "--page", page, "--out", file, "--shown", 7)
    assert "text_images" in out and f"page: {page}" in out
    arrays = dict(np.load(file))
    expected = [(image, text) for image, captions in stored.items() for text in captions]
    assert list(zip(arrays["text_images"], arrays["texts"], strict=True)) == expected
    texts = Embedder(contrastive).texts(arrays["texts"].tolist()[:3])
    np.testing.assert_allclose(arrays["text_embeddings"][:3], texts.pooled, atol=2e-6)

    data = data_of(page)
    assert [image["id"] for image in data["images"]] == list(stored)[:7]
    assert all(image["picture"].startswith("data:image/jpeg") for image in data["images"])
    for text in data["texts"]:
        assert text["text"] in stored[data["images"][text["image"]]["id"]]
    joint, centred = data["views"]
    both = np.concatenate([arrays["image_embeddings"], arrays["text_embeddings"]])
    plane = principal_plane(both)
    assert joint["panels"][0]["explained"] == pytest.approx(plane.explained)
    places = plane.project(arrays["image_embeddings"])[:7]
    np.testing.assert_allclose(joint["points"]["images"]["places"], places, rtol=1e-4, atol=1e-5)
    own = np.concatenate([one - one.mean(0) for one in (arrays["image_embeddings"], arrays["text_embeddings"])])
    assert centred["panels"][0]["explained"] == pytest.approx(principal_plane(own).explained)


def test_retrieval_captions_and_images(embed, trained, world, tmp_path):
    page, file = tmp_path / "plane.html", tmp_path / "e.npz"
    embed(trained, "--retrieval", "flickr_retrieval", "--page", page, "--out", file)
    task = find_task("flickr_retrieval")
    examples = task.examples(task.folder(world), "val")
    arrays = dict(np.load(file))
    assert sorted(zip(arrays["text_images"], arrays["texts"], strict=True)) == sorted(
        (example.images[0], example.text) for example in examples
    )
    [view] = data_of(page)["views"]
    assert [panel["title"] for panel in view["panels"]] == ["images", "texts"], "without a contrastive head: two spaces"


def test_image_files_without_captions_and_texts_without_images(embed, trained, world, tmp_path):
    page = tmp_path / "plane.html"
    (tmp_path / "texts.txt").write_text("a red star\na blue circle\ntwo squares\n")
    embed(
        trained, "--images", world / "images" / "pairs", "--texts", tmp_path / "texts.txt", "--page", page, "--shown", 2
    )
    data = data_of(page)
    assert len(data["images"]) == 2 and all(image["picture"] for image in data["images"])
    assert data["texts"] == [{"text": "a red star", "image": None}, {"text": "a blue circle", "image": None}]


def test_captions_that_cannot_be_read_are_named(tmp_path, capsys):
    class Embedder:
        batch_size = 1

        def images(self, pixels):
            return None

    for name, text in (("1", "ein Café".encode()), ("2", b"ein Caf\xe9")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(text)
    found = list(embed_images(Embedder(), str(tmp_path)))
    assert [part.captions for part in found] == [[("ein Café",)], [()]]
    assert f"skipped {tmp_path / '2.txt'}: is not a caption in UTF-8 or UTF-16" in capsys.readouterr().out


def test_views_of_one_kind():
    values = np.random.default_rng(0).normal(size=(5, 3))
    for comparable in (True, False):
        [view] = views_of({"text": values}, comparable)
        assert [title for title, _ in view.panels] == ["texts"]


@pytest.fixture(scope="module")
def plane(contrastive, world, tmp_path_factory):
    from launching import python

    page = tmp_path_factory.mktemp("plane") / "page.html"
    flags = ("--images", world / "regions" / "pairs", "--captions", 1, "--shown", 12, "--page", page)
    done = python("finetune.embed", "--run", contrastive, *flags)
    assert done.returncode == 0, done.stderr
    return page


def test_a_point_shows_its_caption_its_image_and_the_line_between(plane, look):
    opened, data = look(plane), data_of(plane)
    assert opened.locator(".point").count() == len(data["images"]) + len(data["texts"])
    text = data["texts"][5]
    opened.fill("#search", text["text"])
    box = opened.locator(".point.text:not(.faint)").first.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert text["text"] in opened.inner_text(".tip") and data["images"][text["image"]]["id"] in opened.inner_text(
        ".tip"
    )
    assert opened.get_attribute(".tip img", "src") == data["images"][text["image"]]["picture"]
    assert opened.locator("line.near").count() == 1 and opened.locator(".point.near").count() == 2
    opened.uncheck("#lines")
    assert opened.locator("line:visible").count() == 0
    opened.check("#pictures")
    assert opened.locator("image.point").count() == len(data["images"])
    before = opened.locator(".point.text").first.get_attribute("x")
    opened.select_option("#view", "1")
    assert opened.locator(".point.text").first.get_attribute("x") != before
    assert opened.problems == [] and opened.excess_on_a_phone() == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--images", "x"), "there is nothing to write; give --out, --page or both"),
        (("--page", "p.html"), "there is nothing to embed; give --images, --texts or both, or --retrieval"),
        (("--page", "p.html", "--captions", "1"), "--captions true: needs --images"),
        (("--page", "p.html", "--captions", "1", "--texts", "t", "--images", "x"), "--captions true: replaces --texts"),
        (("--page", "p.html", "--retrieval", "vqa"), "--retrieval vqa: is not a retrieval task"),
        (
            ("--page", "p.html", "--retrieval", "flickr_retrieval", "--images", "x"),
            "cannot be combined with --retrieval",
        ),
        (("--out", "e.json", "--images", "x"), "--out e.json: should end in .npz or .parquet"),
    ],
)
def test_mistakes(contrastive, run_command, flags, complaint):
    status, _, err = run_command("finetune.embed", "--run", contrastive, *flags)
    assert status == 2 and complaint in err and "Traceback" not in err


def test_a_table_has_a_row_per_image_and_text(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = np.arange(60, dtype=np.float32).reshape(10, 6)
    arrays = {
        **{"image_ids": np.array(["7", "31"]), "image_embeddings": rows[:2]},
        **{"image_parts": rows[:5], "image_ends": np.array([2, 5])},
        **{"texts": np.array(["a star", "a disc", "ein Stern"]), "text_images": np.array(["7", "7", "31"])},
        **{"text_embeddings": rows[2:5, :4], "text_parts": rows[5:, :4], "text_ends": np.array([1, 3, 5])},
    }
    write_arrays(str(tmp_path / "e.parquet"), arrays)
    table = parquet.read_table(tmp_path / "e.parquet").to_pylist()
    assert [(row["kind"], row["image"], row["text"]) for row in table] == [
        *(("image", "7", None), ("image", "31", None)),
        *(("text", "7", "a star"), ("text", "7", "a disc"), ("text", "31", "ein Stern")),
    ]
    assert [row["embedding"] for row in table] == [*rows[:2].tolist(), *rows[2:5, :4].tolist()]
    assert table[1]["parts"] == rows[2:5].tolist() and table[3]["parts"] == rows[6:8, :4].tolist()
    write_arrays(str(tmp_path / "t.parquet"), {name: arrays[name] for name in ("texts", "text_embeddings")})
    [first, *_] = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert first == {"kind": "text", "image": None, "text": "a star", "embedding": rows[2, :4].tolist()}


def test_a_table_without_pyarrow_is_one_sentence(monkeypatch):
    monkeypatch.setattr("finetune.embed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--out e\.parquet: needs pyarrow; pip install pyarrow"):
        check(EmbedConfig(run="runs/mt", images="x", out="e.parquet"))


def test_images_without_captions(contrastive, world, run_command, tmp_path):
    flags = ("--images", world / "regions" / "coco", "--captions", 1, "--page", tmp_path / "p.html")
    status, _, err = run_command("finetune.embed", "--run", contrastive, *flags)
    assert status == 2 and "--captions true: none of the images has a caption" in err
