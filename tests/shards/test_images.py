"""Decoding: every kind of picture comes out right or is refused by name; finding: folders and tars."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.images import MAX_PIXELS, BadImage, decode_image, find_parts, read_records, read_source


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED = np.full((5, 7, 3), (200, 10, 30), np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RED),
        Image.fromarray(RED).convert("RGBA"),
        Image.fromarray(RED).quantize(4),
    ],
    ids=["RGB", "RGBA", "palette"],
)
def test_colour_survives_every_mode(image):
    assert np.array_equal(decode_image(encoded(image)), RED)


def test_grey_sixteen_bit_and_cmyk():
    grey = np.array([[0, 128, 255]], np.uint8)
    assert decode_image(encoded(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 128, 255]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert decode_image(encoded(deep))[0, :, 0].tolist() == [0, 128, 255]
    cmyk = decode_image(encoded(Image.fromarray(RED).convert("CMYK"), "TIFF"))
    assert np.abs(cmyk.astype(int) - RED).max() <= 2


def test_transparent_pixels_lie_on_white():
    image = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8), "RGBA")
    assert decode_image(encoded(image)).tolist() == [[[255] * 3, [9] * 3]]


def test_exif_orientation_is_applied():
    image = Image.fromarray(RED)
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, exif=exif)).shape == (7, 5, 3)


@pytest.mark.parametrize(
    "data", [b"", b"not an image", encoded(Image.fromarray(RED))[:50]], ids=["empty", "text", "cut"]
)
def test_damaged_bytes_are_refused_with_a_reason(data):
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode_image(data)


def test_a_bomb_is_refused_before_it_is_decoded():
    side = int(MAX_PIXELS**0.5) + 1
    bomb = encoded(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(BadImage, match="pixels"):
        decode_image(bomb)


def test_a_folder_is_searched_with_its_subfolders_and_captions(tmp_path):
    for name in ("10.png", "2.png", "sub/a.b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RED).save(tmp_path / name)
    (tmp_path / "2.txt").write_text(" two\n")
    (tmp_path / "notes.md").write_text("no image")
    parts = find_parts(str(tmp_path), per_part=2)
    assert [part.count for part in parts] == [2, 1]
    records = [record for part in parts for record in read_records(part)]
    assert [(r.id, r.captions) for r in records] == [("2", ("two",)), ("10", ()), ("sub/a.b", ())]
    assert read_source(records[0].source) == (tmp_path / "2.png").read_bytes()


def make_tar(path, entries):
    with tarfile.open(path, "w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_tar_in_img2datasets_layout(tmp_path):
    picture = encoded(Image.fromarray(RED))
    make_tar(
        tmp_path / "a.tar",
        [("0.png", picture), ("0.txt", b"zero"), ("0.json", b"{}"), ("1.json", b"{}"), ("2.png", picture)],
    )
    (part,) = find_parts(str(tmp_path / "a.tar"), 100)
    records = list(read_records(part))
    assert [(r.id, r.captions) for r in records] == [("0", ("zero",)), ("2", ())] and part.count == 2
    assert read_source(records[1].source) == picture


@pytest.mark.parametrize("keep", [100, 700])
def test_a_truncated_tar_is_named_before_any_work(tmp_path, keep):
    make_tar(tmp_path / "a.tar", [("0.png", encoded(Image.fromarray(RED)) * 9)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"a\.tar"):
        find_parts(str(tmp_path / "a.tar"), 100)


def test_nothing_to_find_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        find_parts(str(tmp_path), 100)
    with pytest.raises(UserError, match="no such file"):
        find_parts(str(tmp_path / "x"), 100)
    make_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    with pytest.raises(UserError, match=r"a\.tar: holds no images"):
        find_parts(str(tmp_path / "a.tar"), 100)


def test_linked_folders_of_images_are_searched(tmp_path):
    """As where the data sets are on another disk."""
    (tmp_path / "disk" / "val2014").mkdir(parents=True)
    Image.fromarray(RED).save(tmp_path / "disk" / "val2014" / "1.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "val2014").symlink_to(tmp_path / "disk" / "val2014")
    (tmp_path / "disk" / "val2014" / "again").symlink_to(tmp_path / "in")
    (part,) = find_parts(str(tmp_path / "in"), 100)
    assert [record.data for record in read_records(part)] == [(tmp_path / "disk" / "val2014" / "1.png").read_bytes()]
