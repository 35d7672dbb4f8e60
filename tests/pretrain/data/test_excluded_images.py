"""Pretraining without the images of a list: neither trained on nor in validation, and the others unchanged."""

import pytest
from data_sets import make_dataset

from pretrain.data.pair_batches import open_pairs
from shards.common.errors import UserError
from shards.common.excluded_ids import read_excluded

EXCLUDED = frozenset(("image.0.3", "image.1.0", "image.1.7", "not.here"))


@pytest.mark.parametrize("per_image", [1, 3])
def test_excluded_images_have_no_pairs(tmp_path, per_image):
    make_dataset(tmp_path, (40, 30), per_image=per_image)
    every, some = (open_pairs(str(tmp_path), 6, excluded=excluded) for excluded in (frozenset(), EXCLUDED))

    def texts(pairs) -> dict[int, tuple[str, ...]]:
        """Image number -> its captions that are used."""
        found: dict[int, tuple[str, ...]] = {}
        for number in sorted([*pairs.trained.tolist(), *pairs.validation.tolist()]):
            image = int(pairs.captions.images_of(number))
            found[image] = (*found.get(image, ()), pairs.captions[number])
        return found

    before, after = texts(every), texts(some)
    without = {image: own for image, own in before.items() if image not in (3, 40, 47)}
    assert set(before) - set(after) >= {3, 40, 47}
    assert {image: after[image] for image in without.keys() & after.keys()} == {
        image: without[image] for image in without.keys() & after.keys()
    }
    assert len(after) >= len(before) - 3 - 6


def test_a_run_says_how_many_listed_images_it_has(tmp_path, run_command):
    """A list with other ids would leave out nothing without a word."""
    make_dataset(tmp_path / "data", (40, 30))
    flags = ("--data", tmp_path / "data", "--steps", 1, "--batch_size", 4, "--workers", 0)
    for name, ids, said in (
        ("some", ("image.0.3", "image.1.7", "not.here"), "2 images skipped, of 3 in the list"),
        ("none", ("not.here",), "0 images skipped, of 1 in the list"),
    ):
        (tmp_path / name).write_text("".join(f"{image}\n" for image in ids))
        status, out, err = run_command(
            "pretrain.run", *flags, "--exclude", tmp_path / name, "--out", tmp_path / f"run-{name}"
        )
        assert status == 0 and f"--exclude {tmp_path / name}: {said}" in out, err
        assert ("another form" in out) == (name == "none")


def test_a_list_may_have_file_names_of_macos(tmp_path):
    (tmp_path / "list").write_text("cafe\u0301\n2\n", encoding="utf-8")
    assert read_excluded(tmp_path / "list") == {"caf\u00e9", "2"}


def test_streams_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.pair_batches.open_stream", lambda data: (make_dataset(tmp_path), None))
    with pytest.raises(UserError, match="--exclude needs local shards"):
        open_pairs("http://example.org/a.tar", 0, excluded=EXCLUDED)
