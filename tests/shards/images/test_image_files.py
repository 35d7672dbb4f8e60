"""Decoding: every kind of picture comes out right or is refused by name; finding: folders and tars."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from launching import python
from PIL import Image

from shards.common.errors import UserError
from shards.common.image_id import image_id
from shards.images.caption_files import with_captions
from shards.images.image_files import MAX_PIXELS, BadImage, decode_image, find_parts, read_records, read_source


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


@pytest.mark.parametrize("largest", [1.0, 255.0, 65535.0])
def test_floating_point_images_are_not_black(largest):
    """Values in 0 to 1, as of depth maps and scientific images, and NaN where nothing was measured."""
    values = np.array([[0, 0.5, 1, np.nan]], np.float32) * np.float32(largest)
    decoded = decode_image(encoded(Image.fromarray(values), "TIFF"))[0, :, 0]
    assert decoded[[0, 2, 3]].tolist() == [0, 255, 0] and 126 <= decoded[1] <= 128


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


def test_corrupt_exif_data_is_skipped_without_a_warning(tmp_path):
    """Pillow's has no file name. In a process of its own, because pytest catches warnings."""
    entry = struct.pack("<HHHII", 1, 0x010E, 2, 999, 500)  # a description of 999 bytes after the end of the data
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + bytes(4)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded(Image.fromarray(RED), "JPEG", exif=exif))
    flags = ("--out", tmp_path / "out", "--visual_words", 2, "--processes", 1)
    done = python("shards.extract", tmp_path / "images", *flags)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr


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
    assert [(r.id, r.captions) for r in records] == [("2", ("two",)), ("10", ()), ("a.b", ())]
    assert read_source(records[0].source) == (tmp_path / "2.png").read_bytes()


def test_captions_in_files_of_capital_letters_are_read(tmp_path):
    """As cameras and Windows programs write them."""
    Image.fromarray(RED).save(tmp_path / "1.JPG")
    (tmp_path / "1.TXT").write_text("one")
    Image.fromarray(RED).save(tmp_path / "2.png")
    (tmp_path / "2.JSON").write_text('{"caption": "two"}')
    make_tar(
        tmp_path / "a.tar", [(name, (tmp_path / name).read_bytes()) for name in ("1.JPG", "1.TXT", "2.png", "2.JSON")]
    )
    for source in (str(tmp_path), str(tmp_path / "a.tar")):
        (part,) = find_parts(source, 100)
        assert {record.id: record.captions for record in read_records(part)} == {"1": ("one",), "2": ("two",)}


def test_images_of_other_formats_are_counted(tmp_path):
    """They were ignored without a word: .jfif and .avif of browsers, .heic of phones, names without a suffix."""
    for name, kind in (("1.jpg", "JPEG"), ("2.jfif", "JPEG"), ("3.JPE", "JPEG"), ("4.ppm", "PPM"), ("5", "JPEG")):
        Image.fromarray(RED).save(tmp_path / name, kind)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "6.HEIC").write_bytes(b"....ftypheic")
    (tmp_path / "LICENSE").write_text("all rights")
    parts, unused = find_parts(str(tmp_path), per_part=1), []
    assert [record.id for part in parts for record in read_records(part, unused)] == ["1", "2", "3"]
    counted = ["1 image without a suffix", "1 image with the suffix .heic", "1 image with the suffix .ppm"]
    assert [found.reason.partition(",")[0] for found in unused] == counted
    chosen, _ = with_captions(parts, {"1": ("one",)}, 100)
    assert len([*read_records(chosen[0], unused)]) == 1 and len(unused) == 2 * len(counted)
    for name in ("1.jpg", "2.jfif", "3.JPE"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"contains no images .*; it has 1 image without a suffix"):
        find_parts(str(tmp_path), 100)


def test_a_number_sign_in_a_folders_name_is_no_member_of_a_tar(tmp_path):
    picture = encoded(Image.fromarray(RED))
    (tmp_path / "a#b").mkdir()
    (tmp_path / "a#b" / "1.png").write_bytes(picture)
    make_tar(tmp_path / "a#b" / "c.tar", [("2#3.png", picture)])
    for source in (str(tmp_path / "a#b"), str(tmp_path / "a#b" / "c.tar")):
        (record,) = read_records(find_parts(source, 100)[0])
        assert read_source(record.source) == picture


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
    with pytest.raises(UserError, match="contains no images"):
        find_parts(str(tmp_path), 100)
    with pytest.raises(UserError, match="no such file"):
        find_parts(str(tmp_path / "x"), 100)
    make_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    with pytest.raises(UserError, match=r"a\.tar: contains no images"):
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


def records_of(images) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """({id: captions} of all images, the reasons for what is not used)."""
    unused = []
    records = [record for part in find_parts(str(images), 100) for record in read_records(part, unused)]
    assert sum(part.count for part in find_parts(str(images), 100)) == len(records)
    return {record.id: record.captions for record in records}, [f"{u.source}: {u.reason}" for u in unused]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("train2014/COCO_train2014_000000000042.jpg", "42"),
        ("./val2014/COCO_val2014_000000000042.jpg", "42"),
        ("val2017/000000000042.jpg", "42"),
        ("VG_100K/2.jpg", "2"),
        ("VG_100K_2/2.JPG", "2"),
        ("2.jpg", "2"),
        ("2", "2"),
        ("images/train/3/train-3-0-img1.png", "train-3-0-img1"),
        ("flickr30k-images/1000092795.jpg", "1000092795"),
        ("1000268201_693b08cb0e.jpg", "1000268201"),
        ("v7w_2317.jpg", "v7w_2317"),
        ("www.site.com_0.jpeg", "www.site.com_0"),
        ("a.b", "a.b"),
        ("000042", "000042"),
        ("00000000042", "00000000042"),
        ("000000000042", "42"),
        ("é1", "é1"),
        ("e\u03011", "é1"),
        ("train2014\\COCO_train2014_000000000042.jpg", "42"),
        (".\\VG_100K_2\\2.JPG", "2"),
        ("images\\train/3\\train-3-0-img1.png", "train-3-0-img1"),
        ("a\\a.b", "a.b"),
        ("cafe\u0301/e\u0301cole 1.jpg", "\u00e9cole 1"),
        ("e\u0301\udcff.jpg", "\u00e9\udcff"),
    ],
)
def test_one_definition_of_an_images_id(name, known):
    assert image_id(name) == known == image_id(known)


OFFICIAL = (
    "coco/train2014/COCO_train2014_000000000001.jpg",
    "coco/val2014/COCO_val2014_000000000005.jpg",
    "genome/VG_100K/2.jpg",
    "genome/VG_100K_2/11.jpg",
    "nlvr2/images/train/3/train-3-0-img0.png",
)
OFFICIAL_IDS = ["1", "5", "2", "11", "train-3-0-img0"]


@pytest.mark.parametrize("prefix", [None, "", "./", "images/"], ids=["folder", "tar", "tar of .", "tar of a folder"])
def test_official_layouts_have_the_ids_of_the_annotations(tmp_path, prefix):
    picture = encoded(Image.fromarray(RED))
    if prefix is None:
        for name in OFFICIAL:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(picture)
        found, _ = records_of(tmp_path / "in")
    else:
        make_tar(tmp_path / "a.tar", [(prefix + name, picture) for name in OFFICIAL])
        found, unused = records_of(tmp_path / "a.tar")
        assert not unused
    assert sorted(found) == sorted(OFFICIAL_IDS)


@pytest.mark.parametrize("tar", [False, True])
@pytest.mark.parametrize(
    "names", [("a/1.png", "b/1.png"), ("1.png", "1.jpg"), ("COCO_val2014_000000000042.jpg", "42.png")]
)
def test_two_images_with_one_id_are_refused_by_both_names(tmp_path, names, tar):
    for number, name in enumerate(names):
        if tar:
            make_tar(tmp_path / f"{number}.tar", [(name, b"x")])
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as error:
        find_parts(str(tmp_path), 1)
    assert all(name in str(error.value) for name in names) and "duplicate image id" in str(error.value)
    assert len(find_parts(str(tmp_path), 1, unique=False)) == 2


def test_members_of_a_tar_may_come_in_any_order(tmp_path):
    """Captions that were appended later, a tar that was shuffled, and what macOS puts between."""
    picture = encoded(Image.fromarray(RED))
    images = [(f"{n}.png", picture) for n in range(4)]
    texts = [(f"{n}.txt", f"text {n}".encode()) for n in range(4)]
    mixed = [texts[0], texts[2], images[3], images[0], ("1.json", b"{}"), images[2], texts[3], images[1], texts[1]]
    expected = {str(n): (f"text {n}",) for n in range(4)}
    make_tar(tmp_path / "appended.tar", images + texts)
    make_tar(tmp_path / "mixed.tar", mixed)
    for name in ("appended.tar", "mixed.tar"):
        assert records_of(tmp_path / name) == (expected, [])
    macos = [(f"./{mark}{name}", data) for name, data in images + texts for mark in ("._", "")]
    make_tar(tmp_path / "macos.tar", macos)
    found, unused = records_of(tmp_path / "macos.tar")
    assert found == expected and len(unused) == 8 and "artifact of a system" in unused[0]


def test_dots_in_names_of_members_belong_to_the_key(tmp_path):
    picture = encoded(Image.fromarray(RED))
    keys = ("Track 0.0 (Clean)", "www.site.com_1", "a")
    make_tar(
        tmp_path / "a.tar",
        [(f"{key}.{end}", picture if end == "jpg" else key.encode()) for key in keys for end in ("jpg", "txt")],
    )
    assert records_of(tmp_path / "a.tar") == ({key: (key,) for key in keys}, [])
    (source,) = [r.source for p in find_parts(str(tmp_path / "a.tar"), 1) for r in read_records(p) if r.id == keys[0]]
    assert read_source(source) == picture


def test_what_a_tar_holds_and_nobody_uses_is_counted(tmp_path):
    picture = encoded(Image.fromarray(RED))
    entries = [("0.in.png", picture), ("0.out.txt", b"x"), ("1.png", b"old"), ("1.png", picture)]
    make_tar(tmp_path / "a.tar", [*entries, ("1.cls", b"3"), ("2.cls", b"3"), ("3.json", b"{}")])
    found, unused = records_of(tmp_path / "a.tar")
    tar = tmp_path / "a.tar"
    assert list(found) == ["0.in", "1"]
    assert unused == [
        f"{tar}#1.png: is replaced by a later member of the same name",
        f"{tar}#0.out.txt: is a caption without an image",
        f"{tar}: 2 members with the suffix 'cls': neither images nor captions",
        f"{tar}: 1 members with the suffix 'json (without an image)': neither images nor captions",
    ]


def test_links_in_a_tar_are_followed(tmp_path):
    """A file that has two names on disk is in the tar once, and then a link."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a/0.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        for name, kind, target in (
            ("b/1.png", tarfile.LNKTYPE, "a/0.png"),
            ("b/2.png", tarfile.SYMTYPE, "../a/0.png"),
            ("b/3.png", tarfile.SYMTYPE, "../nowhere.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    (part,) = find_parts(str(tmp_path / "a.tar"), 1)
    assert [(record.id, record.data) for record in read_records(part)] == [
        ("0", b"abc"),
        ("1", b"abc"),
        ("2", b"abc"),
        ("3", b""),
    ]


CAFE = "un caf\u00e9 au lait"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("tar", [False, True])
def test_captions_are_read_in_their_encoding(tmp_path, encoding, tar):
    entries = [("0.png", encoded(Image.fromarray(RED))), ("0.txt", CAFE.encode(encoding))]
    assert records_of(put(tmp_path, entries, tar)) == ({"0": (CAFE,)}, [])


@pytest.mark.parametrize("tar", [False, True])
def test_a_caption_in_no_known_encoding_is_not_garbled_but_counted(tmp_path, tar):
    entries = [("0.png", encoded(Image.fromarray(RED))), ("0.txt", CAFE.encode("latin-1"))]
    found, (reason,) = records_of(put(tmp_path, entries, tar))
    assert found == {"0": ()} and "0.txt: is not a caption in UTF-8 or UTF-16" in reason


@pytest.mark.parametrize("tar", [False, True])
def test_captions_that_only_the_json_has_are_read(tmp_path, tar):
    picture = encoded(Image.fromarray(RED))
    texts = {"0.json": '{"caption": " one ", "url": "u"}', "1.txt": "two", "1.json": '{"caption": "x"}'}
    texts |= {"2.json": '{"caption": null}', "3.json": '{"caption": ', "4.json": "[]"}
    texts |= {"5.json": '{"caption": ["five", " ", "six "]}', "6.json": '{"caption": ["seven", 8]}'}
    entries = [(f"{n}.png", picture) for n in range(7)] + [(name, text.encode()) for name, text in texts.items()]
    found, reasons = records_of(put(tmp_path, entries, tar))
    assert found == {"0": ("one",), "1": ("two",), "2": (), "3": (), "4": (), "5": ("five", "six"), "6": ()}
    broken, other = sorted(reasons)
    assert "3.json: is not valid JSON" in broken and "6.json: has a caption that is not a text" in other


def test_files_in_a_folder_that_no_image_uses_are_counted(tmp_path):
    """Captions with other names than the images, tars next to images, and images that look like artifacts."""
    picture = encoded(Image.fromarray(RED))
    names = ("in/1.png", "in/sub/2.png", "in/._1.png", "in/__MACOSX/1.png", "in/.DS_Store")
    names += (
        "in/1.txt",
        "in/1.png.txt",
        "in/captions/2.TXT",
        "in/sub/a.tar",
        "in/regions/b.tar",
        "in/regions/dataset.json",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture if name.endswith(".png") else b"a text")
    found, reasons = records_of(tmp_path / "in")
    assert found == {"1": ("a text",), "2": ()}
    assert [reason.partition("/in: ")[2] for reason in reasons] == [
        "2 .txt files without an image of the same name (1.png.txt)",
        "1 .tar files in a folder of images; extract them separately (sub/a.tar)",
        "2 artifacts of a system or an editor (._1.png)",
    ]


def test_tars_in_subfolders_are_asked_for_by_a_pattern(tmp_path):
    (tmp_path / "part0").mkdir()
    make_tar(tmp_path / "part0" / "0.tar", [("1.png", encoded(Image.fromarray(RED)))])
    with pytest.raises(UserError, match=r"\.tar files only in subfolders .*for example '.*/\*/\*\.tar'"):
        find_parts(str(tmp_path), 100)
    assert records_of(f"{tmp_path}/*/*.tar") == ({"1": ()}, [])


def put(folder, entries, tar: bool):
    """Files in a tar or in a folder of their own; returns its path."""
    if tar:
        make_tar(folder / "a.tar", entries)
        return folder / "a.tar"
    (folder / "in").mkdir()
    for name, data in entries:
        (folder / "in" / name).write_bytes(data)
    return folder / "in"


@pytest.mark.parametrize("given", ["in", "absolute", "./in"])
@pytest.mark.parametrize("out", ["out", "deep/out", "absolute"])
def test_a_skipped_image_is_printed_by_its_path_and_not_relative_to_out(tmp_path, run_command, monkeypatch, given, out):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(encoded(Image.fromarray(RED)))
    (tmp_path / "in" / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    flags = ("--out", tmp_path / "out" if out == "absolute" else out, "--visual_words", 2, "--processes", 1)
    folder = tmp_path / "in" if given == "absolute" else given
    status, said, err = run_command("shards.extract", folder, *flags)
    place = tmp_path / "in" if given == "absolute" else "in"
    assert status == 0 and f"skipped {place}/1.png: " in said, err
    (line,) = (Path("out" if out == "absolute" else out) / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == ("../../in/1.png" if out == "deep/out" else "../in/1.png")


def test_links_to_nothing_and_names_that_are_not_utf_8_are_skipped_with_a_reason(tmp_path, run_command):
    picture, folder = encoded(Image.fromarray(RED)), tmp_path / "in"
    for name in ("1.png", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/._1.png", "._1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture)
    (folder / "0.png").symlink_to(tmp_path / "nowhere.png")
    for name in (b"caf\xe9.png", b"ol\xe9.png"):  # \xe9 at the end of both is no id, as after a Windows path
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(picture)
    flags = ("--out", tmp_path / "out", "--visual_words", 2, "--processes", 1)
    status, out, err = run_command("shards.extract", folder, *flags)
    assert status == 0 and "1 image, 0 with captions, in 1 shard; 4 skipped" in out, err
    assert "3 artifacts of a system or an editor (._1.png)" in out
    assert "0.png: is a link to a file that does not exist" in out
    assert "caf\\xe9.png: has a name that is not UTF-8" in out and "ol\\xe9.png: has a name" in out
