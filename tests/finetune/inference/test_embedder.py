"""Embeddings: those that the model computes for one input at a time, whatever the batch, and one space where there is a
contrastive head."""

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.inference.embedder import Embedder
from shards.common.errors import UserError
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

TEXTS = ["a red star", "a large blue circle above a small green square", "two", "the square to the left of a cross"]


@pytest.fixture(scope="module")
def samples(world):
    reader = RegionReader(open_dataset(str(world / "regions" / "pairs")))
    return [reader[number] for number in range(7)]


def one_by_one(embedder, method, *inputs):
    embedder = Embedder(embedder._model.run, batch_size=1)
    return getattr(embedder, method)(*inputs)


def equal(found, expected):
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-6)
    assert len(found.parts) == len(expected.parts)
    for ours, theirs in zip(found.parts, expected.parts, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("kind", ["trained", "contrastive"])
def test_embeddings_do_not_depend_on_the_batch(request, kind, samples):
    embedder = Embedder(request.getfixturevalue(kind), batch_size=3)
    texts, images = embedder.texts(TEXTS), embedder.regions(samples)
    equal(texts, one_by_one(embedder, "texts", TEXTS))
    equal(images, one_by_one(embedder, "regions", samples))
    assert [len(part) for part in images.parts] == [len(sample.features) + 1 for sample in samples]
    assert len(texts.pooled) == 4 and len({part.shape[0] for part in texts.parts}) > 1


def test_texts_and_images_share_a_space_with_a_contrastive_head(contrastive, samples):
    embedder = Embedder(contrastive)
    assert embedder.comparable
    texts, images = embedder.texts(TEXTS), embedder.regions(samples)
    for found in (texts, images):
        np.testing.assert_allclose(np.linalg.norm(found.pooled, axis=1), 1, atol=1e-5)
    model = embedder._model.model.encoder.contrast
    states = torch.from_numpy(texts.parts[1])[None]
    expected = torch.nn.functional.normalize(model.text(states.mean(1)), dim=-1)
    np.testing.assert_allclose(texts.pooled[1], expected[0].detach().numpy(), atol=1e-5)


def test_without_one_they_are_means_of_the_states(trained, samples):
    embedder = Embedder(trained)
    assert not embedder.comparable
    for found in (embedder.texts(TEXTS), embedder.regions(samples)):
        np.testing.assert_allclose(found.pooled, [part.mean(0) for part in found.parts], atol=1e-5)


def test_the_task_token_precedes_the_text(trained):
    with_vqa, with_refcoco = (Embedder(trained, task=task).texts(TEXTS[:1]) for task in ("vqa", "refcoco"))
    assert len(with_vqa.parts[0]) == len(with_refcoco.parts[0])
    assert np.abs(with_vqa.pooled - with_refcoco.pooled).max() > 1e-3


def test_pairs_are_those_of_the_whole_model(trained, world):
    files = sorted((world / "images" / "pairs").glob("*.png"))[:3]
    embedder = Embedder(trained, batch_size=2)
    texts, images = embedder.pairs(TEXTS[:3], files)
    equal_texts, equal_images = one_by_one(embedder, "pairs", TEXTS[:3], files)
    equal(texts, equal_texts)
    equal(images, equal_images)
    other, _ = embedder.pairs(TEXTS[:1], [Image.open(files[1])])
    assert np.abs(other.pooled - texts.pooled[0]).max() > 1e-4, "the text's embedding depends on the image"


def test_image_files_and_their_region_shards_agree(run_command, trained, world, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    status, out, err = run_command(
        "finetune.embed",
        "--run",
        str(trained),
        "--images",
        str(world / "regions" / "pairs"),
        "--texts",
        str(tmp_path / "texts.txt"),
        "--out",
        str(tmp_path / "shards.npz"),
        "--parts",
    )
    assert status == 0, err
    few = tmp_path / "images"
    few.mkdir()
    for file in sorted((world / "images" / "pairs").glob("*.png"))[:5]:
        (few / file.name).symlink_to(file)
    status, out, err = run_command(
        "finetune.embed", "--run", str(trained), "--images", str(few), "--out", str(tmp_path / "files.npz")
    )
    assert status == 0 and "separate spaces" in out, err
    shards, files = (np.load(tmp_path / name) for name in ("shards.npz", "files.npz"))
    rows = [shards["image_ids"].tolist().index(image) for image in files["image_ids"].tolist()]
    np.testing.assert_allclose(files["image_embeddings"], shards["image_embeddings"][rows], atol=5e-3)
    assert shards["texts"].tolist() == TEXTS and shards["text_ends"][-1] == len(shards["text_parts"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --images, --texts or both"),
        (["--texts", "missing.txt"], "missing.txt: cannot be read"),
        (["--texts", "blank.txt"], "blank.txt, line 2: is empty"),
        (["--images", "broken"], "a.png: cannot be decoded"),
        (["--images", "empty"], "contains no images"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(run_command, monkeypatch, trained, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("a\n\nb\n")
    for folder in ("broken", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    status, _, err = run_command("finetune.embed", "--run", str(trained), "--out", "e.npz", *arguments)
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "e.npz").exists()


def test_arguments_are_named(trained):
    with pytest.raises(UserError, match="2 texts and 1 image;"):
        Embedder(trained).pairs(TEXTS[:2], ["a.png"])
    with pytest.raises(UserError, match="no_such_run"):
        Embedder("no_such_run").texts(TEXTS)
