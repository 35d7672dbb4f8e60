"""Published LMDBs and .npy files become region shards; they are written here with the libraries that wrote them."""

import base64
import json
import pickle
import struct

import lmdb
import msgpack
import numpy as np
import pytest

from shards.parsing.safe_pickle import unpickle
from shards.storage.dataset import open_dataset
from shards.storage.reader import RegionReader

CLASSES = 20


def image(number: int, n: int = 4, rows: int | None = None) -> dict:
    """An item of the published feature LMDB; rows behind num_boxes are padding."""
    rng = np.random.default_rng(number)
    corner = rng.random((rows or n, 2)) * 50
    return {
        "image_id": f"im{number}",
        "image_h": 80,
        "image_w": 100,
        "num_boxes": n,
        "boxes": np.concatenate([corner, corner + 20], 1).astype(np.float32),
        "features": rng.normal(size=(rows or n, 8)).astype(np.float32),
    }


def distribution(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(CLASSES, 0.2), n).astype(np.float32)


def encoded(item: dict) -> dict:
    """The same with arrays in base64, as older conversions have them."""
    return item | {name: base64.b64encode(item[name].tobytes()) for name in ("boxes", "features")}


def write_lmdb(path, values: dict[str, bytes], keys=b"keys", listed=None, subdir=True, dump=pickle.dumps):
    environment = lmdb.open(str(path), map_size=1 << 26, subdir=subdir)
    with environment.begin(write=True) as writing:
        for key, value in values.items():
            writing.put(key.encode(), value)
        if keys:
            writing.put(keys, dump([key.encode() for key in (listed or values)]))
    environment.close()


def numpy_to_msgpack(value):
    """msgpack_numpy's form of arrays and numbers."""
    if isinstance(value, np.ndarray):
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
    if isinstance(value, np.generic):
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    raise TypeError(type(value))


def packed(value) -> bytes:
    return msgpack.packb(value, use_bin_type=True, default=numpy_to_msgpack)


def convert(run_command, tmp_path, source, *flags, out="out"):
    status, said, err = run_command("shards.convert", source, "--out", tmp_path / out, "--processes", 1, *flags)
    assert status == 0, err
    return RegionReader(open_dataset(str(tmp_path / out))), said


def check(sample, item: dict, key: str):
    n = item["num_boxes"]
    assert sample.info["id"] == key and (sample.info["width"], sample.info["height"]) == (100, 80)
    np.testing.assert_array_equal(sample.features, item["features"][:n].astype(np.float16))
    np.testing.assert_allclose(sample.boxes * [100, 80, 100, 80], item["boxes"][:n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", ["arrays", "base64"])
def test_the_published_feature_lmdb(tmp_path, run_command, form, protocol):
    items = {f"im{n}": image(n, n=2 + n % 3, rows=6) for n in range(7)}
    shown = {key: item if form == "arrays" else encoded(item) for key, item in items.items()}
    write_lmdb(tmp_path / "a.lmdb", {key: pickle.dumps(item, protocol) for key, item in shown.items()})
    reader, said = convert(run_command, tmp_path, tmp_path / "a.lmdb", "--per_shard", 3)
    assert "7 images in 3 shards, no classes" in said
    for key, item in items.items():
        check(reader[reader.number_of(key)], item, key)
        assert reader[reader.number_of(key)].class_ids is None


def test_an_lmdb_without_its_keys_and_one_that_lists_too_many(tmp_path, run_command):
    values = {f"im{n}": pickle.dumps(image(n)) for n in range(5)}
    write_lmdb(tmp_path / "stopped.lmdb", values, keys=None)
    reader, _ = convert(run_command, tmp_path, tmp_path / "stopped.lmdb")
    assert len(reader) == 5
    write_lmdb(tmp_path / "more.lmdb", values, listed=[*values, "im9"])
    status, _, err = run_command("shards.convert", tmp_path / "more.lmdb", "--out", tmp_path / "stop")
    assert status == 2 and "key im9: is in the list of keys, but has no value" in err
    reader, said = convert(run_command, tmp_path, tmp_path / "more.lmdb", "--on_bad_row", "skip", out="skip")
    assert len(reader) == 5 and "1 skipped" in said


@pytest.mark.parametrize("keys", [b"keys", None])
def test_two_keys_of_an_lmdb_with_one_id_are_refused(tmp_path, run_command, keys):
    """They were an error in one shard, and in two shards one of them replaced the other."""
    values = {key: pickle.dumps(image(0)) for key in ("test/1", "train/1", "train/2")}
    write_lmdb(tmp_path / "a.lmdb", values, keys=keys)
    status, _, err = run_command("shards.convert", tmp_path / "a.lmdb", "--out", tmp_path / "out", "--per_shard", 1)
    assert status == 2 and "a.lmdb, keys test/1 and train/1: duplicate image id 1 " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("spawned_workers")
def test_entries_that_the_list_of_keys_lacks_are_counted(tmp_path, run_command):
    """As where a program wrote the list first and was run again with more images."""
    values = {f"im{n}": pickle.dumps(image(n)) for n in range(5)}
    write_lmdb(tmp_path / "a.lmdb", values, listed=["im0", "im1"])
    reader, said = convert(run_command, tmp_path, tmp_path / "a.lmdb")
    assert len(reader) == 2 and "3 entries are not in its list of keys and are ignored (im2)" in said
    write_lmdb(tmp_path / "whole.lmdb", values)
    assert "not in its list" not in convert(run_command, tmp_path, tmp_path / "whole.lmdb", out="whole")[1]


@pytest.mark.parametrize("form", ["msgpack", "pickle"])
def test_the_pretraining_lmdb(tmp_path, run_command, form):
    """Captions and class distributions come along; so many classes are kept that 99% of the mass is."""
    dump = packed if form == "msgpack" else pickle.dumps
    items = [image(n, n=3, rows=5) for n in range(40)]
    probs = [distribution(5, n) for n in range(40)]
    parts = ("features", "boxes", "num_boxes", "image_h", "image_w", "image_id")
    values = {}
    for number, (item, prob) in enumerate(zip(items, probs, strict=True)):
        features, *rest = (item[name] for name in parts)
        values[f"{number:08d}"] = dump([features, prob, *rest, f"a caption {number}"])
    write_lmdb(tmp_path / "pairs.lmdb", values, keys=b"__keys__", subdir=False, dump=dump)
    reader, said = convert(run_command, tmp_path, tmp_path / "pairs.lmdb", "--per_shard", 16)
    assert "40 images in 3 shards, 40 with captions" in said
    rows = np.concatenate([prob[:3] for prob in probs]).astype(np.float64)
    mass = np.sort(rows, 1)[:, ::-1].cumsum(1).mean(0)
    kept = int((mass < 0.99 * mass[-1]).sum()) + 1
    assert 1 < kept < CLASSES and reader.dataset.classes_per_region == kept and reader.dataset.num_classes == CLASSES
    for number, (item, prob) in enumerate(zip(items, probs, strict=True)):
        sample = reader[reader.number_of(f"im{number}")]
        check(sample, item, f"im{number}")
        assert sample.captions == (f"a caption {number}",)
        order = np.argsort(-prob[:3], 1, kind="stable")[:, :kept]
        np.testing.assert_array_equal(np.sort(sample.class_ids, 1), np.sort(order, 1))
        np.testing.assert_allclose(sample.class_probs, np.take_along_axis(prob[:3], order, 1), atol=1e-3)


def test_an_lmdb_that_was_cut_short(tmp_path, run_command):
    write_lmdb(tmp_path / "a.lmdb", {f"im{n}": pickle.dumps(image(n, n=30)) for n in range(20)})
    file = tmp_path / "a.lmdb" / "data.mdb"
    used = lmdb.open(str(tmp_path / "a.lmdb"), readonly=True, lock=False)
    size = (used.info()["last_pgno"] + 1) * used.stat()["psize"]
    used.close()
    with open(file, "r+b") as opened:
        opened.truncate(size - 4096)
    status, _, err = run_command("shards.convert", tmp_path / "a.lmdb", "--out", tmp_path / "out")
    assert status == 2 and "it was truncated, fetch it again" in err


class Planted:
    def __reduce__(self):
        return (print, ("this pickle ran code",))


def test_a_pickle_that_wants_more_than_arrays_is_refused_by_name(tmp_path, run_command):
    values = {f"im{n}": pickle.dumps(image(n)) for n in range(3)} | {"im3": pickle.dumps(image(3) | {"x": Planted()})}
    write_lmdb(tmp_path / "a.lmdb", values)
    status, said, err = run_command("shards.convert", tmp_path / "a.lmdb", "--out", tmp_path / "out")
    assert status == 2 and "key im3: cannot be read (it names builtins.print)" in err and "ran code" not in said


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"features": None}, "features that are not numbers"),
        ({"num_boxes": 9}, "has num_boxes 9, but 4 boxes"),
        ({"num_boxes": "many"}, "num_boxes 'many'; should be an integer"),
        ({"boxes": np.zeros((0, 4))}, "has boxes of shape (0"),
        ({"image_w": 10}, "outside its 10 x 80 image"),
        ({"image_h": 0}, "has a size of 100 x 0"),
        ({"features": np.zeros((4, 6), np.float32)}, "has features of size 6; others have 8"),
        ({"features": np.full((4, 8), np.nan, np.float32)}, "not finite"),
        ({"features": "!"}, "features that are not numbers"),
    ],
)
def test_items_that_cannot_be_used(tmp_path, run_command, changes, complaint):
    values = {f"im{n}": pickle.dumps(image(n)) for n in range(3)} | {"im3": pickle.dumps(image(3) | changes)}
    write_lmdb(tmp_path / "a.lmdb", values)
    reader, _ = convert(run_command, tmp_path, tmp_path / "a.lmdb", "--on_bad_row", "skip")
    assert len(reader) == 3
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert complaint in json.loads(line)["reason"] and json.loads(line)["where"].endswith("key im3")


def write_mmf(folder, number: int, whole: bool) -> dict:
    item, probs = image(number), distribution(4, number)
    info = {
        "bbox": item["boxes"],
        "num_boxes": 4,
        "objects": probs[:, 1:].argmax(1),
        "image_width": 100,
        "image_height": 80,
        "cls_prob": probs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if whole:
        np.save(folder / f"im{number}.npy", info | {"features": item["features"], "image_id": f"im{number}"})
    else:
        np.save(folder / f"im{number}.npy", item["features"])
        np.save(folder / f"im{number}_info.npy", info)
    return item


@pytest.mark.parametrize("whole", [False, True], ids=["pairs", "one"])
def test_mmf_features(tmp_path, run_command, whole):
    items = {f"im{n}": write_mmf(tmp_path / "mmf" / f"part{n % 2}", n, whole) for n in range(5)}
    reader, _ = convert(run_command, tmp_path, tmp_path / "mmf")
    assert reader.dataset.num_classes == CLASSES
    for key, item in items.items():
        check(reader[reader.number_of(key)], item, key)


def test_mmf_features_in_linked_folders(tmp_path, run_command):
    items = {f"im{n}": write_mmf(tmp_path / "disk" / f"part{n}", n, False) for n in range(3)}
    (tmp_path / "mmf").mkdir()
    for name in ("part0", "part2"):
        (tmp_path / "mmf" / name).symlink_to(tmp_path / "disk" / name)
    reader, _ = convert(run_command, tmp_path, tmp_path / "mmf")
    assert sorted(reader[n].info["id"] for n in range(len(reader))) == ["im0", "im2"]
    check(reader[reader.number_of("im2")], items["im2"], "im2")


def test_mmf_files_that_are_not_whole(tmp_path, run_command):
    folder = tmp_path / "mmf"
    for number in range(4):
        write_mmf(folder, number, False)
    (folder / "im1_info.npy").unlink()
    (folder / "im2.npy").write_bytes((folder / "im2.npy").read_bytes()[:-3])
    np.save(folder / "im3_info.npy", np.array(Planted(), dtype=object))
    reader, said = convert(run_command, tmp_path, folder, "--on_bad_row", "skip")
    assert [reader[n].info["id"] for n in range(len(reader))] == ["im0"] and "3 skipped" in said
    assert "im1.npy: has no im1_info.npy next to it" in said and "it names builtins.print" in said


def mmf_pair(folder, key: str, **changes):
    """An image's two files; None removes a part."""
    item, probs = image(1), distribution(4, 1)
    info = {"bbox": item["boxes"], "num_boxes": 4, "image_width": 100, "image_height": 80, "cls_prob": probs}
    parts = info | {"features": item["features"]} | changes
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{key}.npy", parts.pop("features"))
    np.save(folder / f"{key}_info.npy", {name: part for name, part in parts.items() if part is not None})
    return item


FEATURES, PROBS, BOXES = image(1)["features"], distribution(4, 1), image(1)["boxes"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": np.ones((40, 8), np.float32)}, "has features of shape (40, 8); should be (4, D)"),
        ({"features": np.ones((8, 2, 2), np.float32)}, "has features of shape (8, 2, 2); should be (4, D)"),
        ({"features": FEATURES.ravel()}, "has features of shape (32,); should be (4, D)"),
        ({"features": FEATURES[:2]}, "has features of shape (2, 8); should be (4, D)"),
        ({"cls_prob": np.concatenate([PROBS, PROBS])}, "has cls_prob of shape (8, 20); should be (4, classes)"),
        ({"bbox": BOXES.ravel()}, "has boxes of shape (16,); should be (n, 4)"),
        ({"cls_prob": PROBS * 0.9}, "has a class distribution (region"),
        (
            {"cls_prob": np.concatenate([PROBS[:3], PROBS[3:] / 2])},
            "has a class distribution (region 3) with the sum 0.500; should be 1",
        ),
        ({"bbox": BOXES / 100}, "has boxes between 0 and 1; they should be in pixels"),
    ],
)
def test_shapes_sums_and_units_count(tmp_path, run_command, changes, reason):
    """What does not fit is refused by name, and not folded until it does."""
    mmf_pair(tmp_path / "mmf", "bad", **changes)
    for key in ("a", "c"):
        mmf_pair(tmp_path / "mmf", key)
    flags = ("shards.convert", tmp_path / "mmf", "--processes", 1, "--out", tmp_path / "out")
    status, _, err = run_command(*flags)
    assert status == 2 and f"mmf/bad.npy: {reason}" in err
    status, out, _ = run_command(*flags, "--on_bad_row", "skip")
    assert status == 0 and "2 images in 1 shard" in out and "1 skipped" in out


@pytest.mark.parametrize(
    "changes",
    [
        {"features": np.concatenate([FEATURES, np.zeros((6, 8), np.float32)])},
        {"features": FEATURES[None]},
        {"features": np.asfortranarray(FEATURES)},
        {"cls_prob": np.concatenate([PROBS, np.zeros((6, CLASSES), np.float32)])},
        {"bbox": np.concatenate([BOXES, np.zeros((6, 4), np.float32)])},
        {"bbox": BOXES.tolist(), "cls_prob": PROBS.astype(np.float16)},
        {"num_boxes": None},
    ],
    ids=["padded features", "batch of one", "columns", "padded classes", "padded boxes", "list and half", "no count"],
)
def test_padding_and_batches_of_one_are_read_right(tmp_path, run_command, changes):
    item = mmf_pair(tmp_path / "mmf", "1.jpg", **changes)
    reader, _ = convert(run_command, tmp_path, tmp_path / "mmf")
    check(reader[0], item, "1")


def test_mmfs_names_are_read_in_an_lmdb_too(tmp_path, run_command):
    names = {"boxes": "bbox", "image_h": "image_height", "image_w": "image_width"}
    items = {f"{n}.jpg": {names.get(name, name): value for name, value in image(n).items()} for n in range(3)}
    write_lmdb(tmp_path / "a.lmdb", {key: pickle.dumps(item) for key, item in items.items()})
    reader, _ = convert(run_command, tmp_path, tmp_path / "a.lmdb")
    for n in range(3):
        check(reader[reader.number_of(str(n))], image(n), str(n))


def test_two_npy_files_with_one_id_are_refused_by_both_names(tmp_path, run_command):
    for folder in ("a", "b"):
        mmf_pair(tmp_path / "mmf" / folder, "COCO_val2014_000000000042")
    status, _, err = run_command("shards.convert", tmp_path / "mmf", "--out", tmp_path / "out")
    assert status == 2 and "mmf/a/COCO" in err and "mmf/b/COCO" in err and "duplicate image id 42" in err


CAFE = "un caf\u00e9 au lait"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (CAFE, CAFE),
        (CAFE.encode(), CAFE),
        (CAFE.encode("utf-16"), CAFE),
        (CAFE.encode().decode("latin-1"), CAFE),  # a text of Python 2, read as numpy's pickles have to be
        (CAFE.encode("latin-1"), None),
    ],
)
def test_captions_of_an_lmdb_are_never_garbled(tmp_path, run_command, caption, expected):
    items = {"a": image(0), "b": image(1) | {"caption": caption}}
    write_lmdb(tmp_path / "a.lmdb", {key: pickle.dumps(item) for key, item in items.items()})
    reader, said = convert(run_command, tmp_path, tmp_path / "a.lmdb", "--on_bad_row", "skip")
    found = {sample.info["id"]: sample.captions for sample in reader}
    assert found == {"a": ()} | ({"b": (expected,)} if expected else {})
    assert expected or "key b: has a text that is neither UTF-8 nor UTF-16" in said


def damage_page(file, kind: int, text: bytes) -> None:
    """Overwrites the kind of the first page of this kind (2: a leaf, 1: a branch) that has a text in it."""
    data = bytearray(file.read_bytes())
    pages = range(0, len(data), 4096)
    page = next(p for p in pages if data[p + 10] == kind and text in data[p : p + 4096])
    data[page + 10] = 4
    file.write_bytes(data)


def test_a_damaged_page_of_an_lmdb_is_a_counted_skip_or_a_sentence(tmp_path, run_command):
    values = {f"im{n:03d}": pickle.dumps(image(n, n=1)) for n in range(100)}
    write_lmdb(tmp_path / "a.lmdb", values)
    file = tmp_path / "a.lmdb" / "data.mdb"
    damage_page(file, 2, b"im050")
    flags = ("shards.convert", tmp_path / "a.lmdb", "--processes", 1, "--out")
    status, _, err = run_command(*flags, tmp_path / "out")
    assert status == 2 and ": cannot be read (" in err and "the file is damaged" in err and "Traceback" not in err
    status, out, err = run_command(*flags, tmp_path / "out", "--on_bad_row", "skip")
    assert status == 0 and ": cannot be read (" in out, err
    reader = RegionReader(open_dataset(str(tmp_path / "out")))
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert len(reader) + len(skipped) == 100 and 0 < len(skipped) < 20
    damage_page(file, 1, b"im")
    status, _, err = run_command(*flags, tmp_path / "two", "--on_bad_row", "skip")
    assert status == 2 and "a.lmdb: is damaged (" in err and "Traceback" not in err


def test_several_processes_give_the_same_bytes_and_finished_shards_are_kept(tmp_path, run_command):
    write_lmdb(tmp_path / "a.lmdb", {f"im{n}": pickle.dumps(image(n)) for n in range(11)})
    flags = ("shards.convert", tmp_path / "a.lmdb", "--per_shard", 3, "--out")
    assert run_command(*flags, tmp_path / "one", "--processes", 1)[0] == 0
    assert run_command(*flags, tmp_path / "two", "--processes", 2)[0] == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert "skipped.jsonl" in files and len([name for name in files if name.endswith(".tar")]) == 4
    for name in files:
        if name.endswith((".tar", ".json")):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert "is already complete" in run_command(*flags, tmp_path / "one")[1]


def test_a_folder_with_nothing_written_is_begun_anew(tmp_path, run_command):
    """Of a run that stopped before its first shard there is only the mark; other settings may follow it."""
    write_lmdb(tmp_path / "a.lmdb", {"im0": b"no pickle", **{f"im{n}": pickle.dumps(image(n)) for n in range(1, 4)}})
    flags = ("shards.convert", tmp_path / "a.lmdb", "--processes", 1, "--out", tmp_path / "out")
    assert run_command(*flags)[0] == 2 and (tmp_path / "out" / "unfinished.json").exists()
    assert "3 images in 3 shards" in run_command(*flags, "--per_shard", 1, "--on_bad_row", "skip")[1]


def test_a_conversion_goes_on_where_it_stopped(tmp_path, run_command):
    """A bad record ends it; after its mend, the shards that were whole are not written anew."""
    values = {f"im{n}": pickle.dumps(image(n)) for n in range(8)}
    write_lmdb(tmp_path / "a.lmdb", values | {"im7": pickle.dumps(image(7) | {"num_boxes": 0})})
    flags = ("shards.convert", tmp_path / "a.lmdb", "--per_shard", 2, "--processes", 1, "--out", tmp_path / "out")
    assert run_command(*flags)[0] == 2
    first = (tmp_path / "out" / "regions-00000.tar").stat()
    with pytest.raises(Exception, match="is incomplete; run the command"):
        open_dataset(str(tmp_path / "out"))
    write_lmdb(tmp_path / "a.lmdb", {"im7": values["im7"]}, keys=None)
    assert run_command(*flags)[0] == 0
    assert (tmp_path / "out" / "regions-00000.tar").stat().st_mtime_ns == first.st_mtime_ns
    assert len(open_dataset(str(tmp_path / "out"))) == 8


@pytest.mark.parametrize("name", ["text.txt", "empty"])
def test_sources_that_are_something_else(tmp_path, run_command, name):
    (tmp_path / "text.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    status, _, err = run_command("shards.convert", tmp_path / name, "--out", tmp_path / "out")
    assert status == 2 and "should be" in err and ".tsv" in err and "LMDB" in err and ".npy" in err


def test_an_empty_lmdb_and_an_empty_tsv(tmp_path, run_command):
    write_lmdb(tmp_path / "a.lmdb", {}, listed=None)
    (tmp_path / "a.tsv").write_text("")
    for name in ("a.lmdb", "a.tsv"):
        status, _, err = run_command("shards.convert", tmp_path / name, "--out", tmp_path / "out")
        assert status == 2 and "contains no valid image" in err


@pytest.mark.parametrize("protocol", range(6))
def test_the_unpickler_makes_arrays_and_numbers(protocol):
    value = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "n": np.float64(0.5),
        "i": [np.int64(7), 1, "x", None, True],
        "o": np.array({"k": np.zeros(2)}, dtype=object),
        "b": b"\x00\xff",
    }
    found = unpickle(pickle.dumps(value, protocol), arrays=True)
    np.testing.assert_array_equal(found["a"], value["a"])
    np.testing.assert_array_equal(found["f"], value["f"])
    assert found["n"] == 0.5 and found["i"] == value["i"] and found["b"] == value["b"]
    np.testing.assert_array_equal(found["o"].item()["k"], np.zeros(2))
    with pytest.raises(ValueError, match="it names numpy"):
        unpickle(pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Planted()),
        b"cos\nsystem\n(S'echo ran code'\ntR.",
        b"cnumpy\nndarray\n((I4\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'12345678'\ntR.",
        b"",
        struct.pack("<I", 7),
    ],
)
def test_the_unpickler_refuses(data, capfd):
    with pytest.raises(ValueError):
        unpickle(data, arrays=True)
    assert "ran code" not in capfd.readouterr().out
