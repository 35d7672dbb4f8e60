"""Prepared data is what the readers read, and is made again whenever it is not."""

import dataclasses
import multiprocessing
import os
import pickle
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import official_files
import pytest

from finetune.annotations.official_files import MissingFile
from finetune.prepared import prepare_data, prepared_file
from finetune.prepared.packed_examples import PackedExamples
from finetune.prepared.prepare_data import (
    ANSWERS,
    EXAMPLES,
    IMAGES,
    KEPT,
    Wanted,
    derived_arrays,
    for_training,
    open_prepared,
    places,
    prepare,
)
from finetune.tasks import all_tasks, find_task
from shards.common.errors import UserError

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_official_files(data: Path) -> None:
    """The hand-written official files of all tests of formats."""
    for split, question in (("train2014", 0), ("val2014", 100), ("test2015", 200)):
        official_files.vqa(data / "vqa", [question + n for n in range(1, 5)], split)
    official_files.vgqa(data / "vgqa")
    for number, split in enumerate(("train", "val", "testdev")):
        official_files.gqa(data / "gqa", split, 100 * number)
    official_files.karpathy(data / "coco_retrieval" / "dataset_coco.json")
    official_files.karpathy(data / "flickr_retrieval" / "dataset_flickr30k.json", coco=False)
    for name, file in (("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")):
        official_files.refer(data / name, file, ("train", "val", "testA", "test"))
    official_files.visual7w(data / "visual7w")
    for split in ("train", "valid"):
        official_files.guesswhat(data / "guesswhat", split, packed=split == "valid")
    for split in ("train", "dev"):
        official_files.nlvr2(data / "nlvr2", split)
        official_files.snli_ve(data / "snli_ve", split)


@pytest.fixture
def data(tmp_path):
    write_official_files(tmp_path / "data")
    return tmp_path / "data"


def is_same(data, task, split) -> bool:
    """Whether prepared examples and counts equal those of the readers, or both report the same error."""
    folder = task.folder(data)
    try:
        expected = task.read(folder, split)
    except UserError as error:
        with pytest.raises(type(error)) as found:
            open_prepared(data, Wanted(task, EXAMPLES, split))
        return str(found.value) == str(error)
    found = open_prepared(data, Wanted(task, EXAMPLES, split))
    assert found.mapped is not None and list(found) == expected, (task.name, split)
    assert [repr(example) for example in found] == [repr(example) for example in expected]
    counts = Counter(example.images for example in expected)
    assert found.image_counts() == counts == open_prepared(data, Wanted(task, IMAGES, split))
    return True


def check_all(data) -> int:
    compared = 0
    for task in all_tasks().values():
        for split in task.splits if task.folder(data).is_dir() else ():
            assert is_same(data, task, split), (task.name, split)
            compared += (places(data)[0] / f"{task.name}-{split}.examples").exists()
        if task.head.has_vocabulary and task.folder(data).is_dir():
            answers = open_prepared(data, Wanted(task, ANSWERS, "training"))
            assert answers == Counter(task.right_answers(task.folder(data)))
    return compared


def test_prepared_examples_of_official_files_are_those_of_the_readers(data):
    assert check_all(data) > 30


def test_prepared_examples_of_the_miniature_world_are_those_of_the_readers(world, tmp_path):
    for name in all_tasks():
        if (world / name).is_dir():
            shutil.copytree(world / name, tmp_path / "copy" / name)
    assert check_all(tmp_path / "copy") > 30


@pytest.mark.usefixtures("spawned_workers")
def test_several_processes_make_what_one_makes(data, monkeypatch):
    monkeypatch.setattr(prepare_data, "WORTH_PROCESSES", 0)
    wanted, said = [one for name in ("vqa", "gqa", "refcoco") for one in for_training(find_task(name))], []
    prepare(data, [*wanted, Wanted(find_task("nlvr2"), EXAMPLES, "test1")], 2, said.append)
    assert len(said) == 5 and "reading the annotations of 4 tasks" in said[0]
    assert {path.name for path in places(data)[0].iterdir()} == {one.file(Path()).name for one in wanted}
    monkeypatch.setattr(prepare_data, "_make", lambda *_: pytest.fail("everything exists"))
    for one in wanted:
        open_prepared(data, one)
    prepare(data, wanted, 2, said.append)
    assert len(said) == 5
    with pytest.raises(pytest.fail.Exception, match="everything exists"):
        open_prepared(data, Wanted(find_task("nlvr2"), EXAMPLES, "test1"))


def test_a_missing_file_is_reported_and_not_remembered(data):
    wanted = Wanted(find_task("nlvr2"), EXAMPLES, "test1")
    for _ in range(2):
        with pytest.raises(MissingFile, match=r"test1\.json: not found"):
            open_prepared(data, wanted)
    official_files.nlvr2(data / "nlvr2", "test1")
    assert len(open_prepared(data, wanted)) == 4


NLVR2 = Wanted(find_task("nlvr2"), EXAMPLES, "dev")


@pytest.fixture
def reads(monkeypatch):
    """How often examples were read since the last call."""
    count, read = [0], type(find_task("nlvr2")).examples

    def counted(task, folder, split):
        count[0] += 1
        return read(task, folder, split)

    monkeypatch.setattr(type(find_task("nlvr2")), "examples", counted)

    def since() -> int:
        found, count[0] = count[0], 0
        return found

    return since


def test_files_are_read_once(data, reads):
    first = open_prepared(data, NLVR2)
    assert reads() == 1 and open_prepared(data, NLVR2) == first and reads() == 0


def test_a_changed_source_is_read_again_even_with_the_same_size_and_time(data, reads):
    path, before = data / "nlvr2" / "dev.json", open_prepared(data, NLVR2)[0]
    known = path.stat()
    path.write_text(path.read_text().replace("shows 0 dogs", "shows 9 dogs"))
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (known.st_size, known.st_mtime_ns)
    assert "shows 9 dogs" in open_prepared(data, NLVR2)[0].text != before.text and reads() == 2


def test_an_unchanged_source_with_another_time_is_not_read_again(data, reads):
    open_prepared(data, NLVR2)
    os.utime(data / "nlvr2" / "dev.json", ns=(1, 1))
    assert open_prepared(data, NLVR2) and reads() == 1
    shutil.copytree(data, data.parent / "copy")
    assert open_prepared(data.parent / "copy", NLVR2) and reads() == 0


def test_a_file_that_takes_precedence_is_read(data):
    """The prepared examples record searches without a result too."""
    wanted = Wanted(find_task("flickr_retrieval"), EXAMPLES, "test")
    folder = data / "flickr_retrieval"
    (folder / "dataset_flickr30k.json").rename(folder / "dataset_flickr8k.json")
    assert len(open_prepared(data, wanted)) == 5
    official_files.karpathy(folder / "dataset_flickr30k.json", ("test", "test"), coco=False)
    with pytest.raises(UserError, match="found both"):
        open_prepared(data, wanted)
    (folder / "dataset_flickr8k.json").unlink()
    assert len(open_prepared(data, wanted)) == 10
    (folder / "dataset_flickr30k.json").unlink()
    with pytest.raises(MissingFile):
        open_prepared(data, wanted)


def test_other_settings_of_a_task_are_read_again(data, reads):
    other = Wanted(dataclasses.replace(NLVR2.task, max_tokens=9), EXAMPLES, NLVR2.split)
    for wanted in (NLVR2, other, NLVR2):
        assert open_prepared(data, wanted) and reads() == 1
    assert open_prepared(data, NLVR2) and reads() == 0


def test_examples_of_another_version_of_the_code_are_read_again(data, reads, monkeypatch):
    open_prepared(data, NLVR2)
    monkeypatch.setattr(prepare_data, "code_of", lambda task: "another version")
    assert open_prepared(data, NLVR2) and reads() == 2


def test_the_version_covers_the_readers():
    """A change in the module of a task, of its base class, or of the functions that read files is another version."""
    root = Path(prepare_data.__file__).parents[2]
    for name in ("finetune/tasks/nlvr2.py", "finetune/task_types/base.py", "finetune/annotations/official_files.py"):
        path, before = root / name, prepare_data.code_of.__wrapped__(find_task("nlvr2"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda self, at=path: self.open("rb").read() + b"#" * (self == at))
            assert prepare_data.code_of.__wrapped__(find_task("nlvr2")) != before, name


def test_the_key_is_the_same_in_every_process():
    """No part of it is an address in memory."""
    assert [name for name, task in all_tasks().items() if " at 0x" in str(Wanted(task, EXAMPLES, "").key())] == []


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one changed byte."""
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]


def test_a_damaged_or_foreign_file_is_made_again(data, reads):
    expected, path = list(open_prepared(data, NLVR2)), NLVR2.file(places(data)[0])
    content, rng = path.read_bytes(), random.Random(0)
    other = Wanted(find_task("nlvr2"), EXAMPLES, "train")
    open_prepared(data, other)
    wrong = [damaged(content, rng) for _ in range(60)]
    wrong += [content[: rng.randrange(len(content))] for _ in range(20)]
    wrong += [content + b"\0", b"", pickle.dumps([1]), other.file(places(data)[0]).read_bytes()]
    assert reads() == 2
    for one in wrong:
        path.write_bytes(one)
        assert list(open_prepared(data, NLVR2)) == expected and reads() == 1
        assert path.read_bytes() == content


def test_a_source_that_changes_while_it_is_read_is_reported(data, monkeypatch):
    read = type(find_task("nlvr2")).examples

    def read_slowly(task, folder, split):
        found = read(task, folder, split)
        with open(folder / f"{split}.json", "a") as file:
            file.write("\n")
        return found

    monkeypatch.setattr(type(find_task("nlvr2")), "examples", read_slowly)
    with pytest.raises(UserError, match=r"dev\.json: was changed while it was read"):
        open_prepared(data, NLVR2)
    assert not NLVR2.file(places(data)[0]).exists()


def save_again_and_again(path: Path, arrays: list[dict]) -> None:
    """Never ends: writes a file and removes it, in turn."""
    while True:
        for one in arrays:
            prepared_file.save_arrays(path, {}, path.parent, prepare_data.recording().__enter__(), one)


def test_a_killed_process_leaves_no_file_that_is_taken_for_whole(tmp_path):
    arrays = [{"data": np.full(3_000_000, value, np.uint8), "ends": np.arange(value)} for value in (1, 2)]
    path, rng, found = tmp_path / "a.examples", random.Random(0), []
    for _ in range(20):
        path.unlink(missing_ok=True)
        process = FORK.Process(target=save_again_and_again, args=(path, arrays))
        process.start()
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        process.join()
        mapped = prepared_file.load_arrays(path, {}, tmp_path)
        assert path.exists() == (mapped is not None)
        if mapped is not None:
            value = mapped.arrays["data"][0]
            assert any(np.array_equal(mapped.arrays["data"], one["data"]) for one in arrays)
            assert np.array_equal(mapped.arrays["ends"], np.arange(value))
        found.append((mapped is not None, any(tmp_path.glob(".*.part"))))
    assert any(left for _, left in found) and len(set(found)) > 1  # killed before, during and after the first file


def open_again_and_again(data) -> None:
    """Never ends: makes prepared examples and removes them, in turn."""
    while True:
        open_prepared(data, NLVR2)
        NLVR2.file(places(data)[0]).unlink()


def test_after_a_killed_build_the_next_one_succeeds(data):
    lines = (data / "nlvr2" / "dev.json").read_text()
    renamed = (lines.replace("dev-850", f"dev-{n}") for n in range(1000, 1500))
    (data / "nlvr2" / "dev.json").write_text("".join(renamed))
    expected, rng = find_task("nlvr2").read(data / "nlvr2", "dev"), random.Random(1)
    for _ in range(20):
        process = FORK.Process(target=open_again_and_again, args=(data,))
        process.start()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert open_prepared(data, NLVR2) == expected
        assert [path.name for path in places(data)[0].iterdir() if path.suffix != ".examples"] in ([], [".lock"])
        NLVR2.file(places(data)[0]).unlink()


def test_what_a_killed_process_left_is_removed(data):
    place = places(data)[0]
    place.mkdir()
    (place / ".nlvr2-dev.examples.part").write_bytes(b"half")
    assert len(open_prepared(data, NLVR2)) == 4 and [p.name for p in place.iterdir()] == ["nlvr2-dev.examples"]


def open_and_count(data, barrier, queue) -> None:
    read, count = type(find_task("nlvr2")).examples, [0]

    def read_slowly(task, folder, split):
        count[0] += 1
        time.sleep(0.5)
        return read(task, folder, split)

    type(find_task("nlvr2")).examples = read_slowly
    barrier.wait()
    queue.put((len(open_prepared(data, NLVR2)), count[0]))


def test_of_several_processes_one_reads_and_the_others_wait(data):
    barrier, queue = FORK.Barrier(3), FORK.Queue()
    processes = [FORK.Process(target=open_and_count, args=(data, barrier, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == [(4, 0), (4, 0), (4, 1)]


def test_a_data_folder_that_cannot_be_written_has_its_examples_in_the_cache_directory(data, cache_folder, reads):
    (data / "prepared").touch()  # also root cannot create a folder there
    open_prepared(data, NLVR2)
    [path] = [path for path in cache_folder.rglob("*") if path.is_file()]
    assert path == NLVR2.file(places(data)[1]) and reads() == 1
    assert open_prepared(data, NLVR2).mapped.path == path and reads() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_data_folder(data, cache_folder):
    data.chmod(0o555)
    assert open_prepared(data, NLVR2).mapped.path.is_relative_to(cache_folder)
    data.chmod(0o755)


def test_without_any_folder_the_examples_are_in_memory(data, cache_folder, reads):
    (data / "prepared").touch()
    cache_folder.touch()
    found = open_prepared(data, NLVR2)
    assert found.mapped is None and len(found) == 4 and reads() == 1


def test_the_digest_is_the_same_from_a_file_and_from_memory(data):
    """One rank may map a file that another one cannot read."""
    task = all_tasks()["vqa"]
    mapped = open_prepared(data, Wanted(task, EXAMPLES, "val"))
    assert mapped.mapped is not None
    assert mapped.digest() == PackedExamples.of(task.read(task.folder(data), "val")).digest()
    assert mapped[1:].digest() != mapped.digest()


def test_another_process_maps_the_file_and_gets_no_copy(data):
    examples = open_prepared(data, NLVR2)
    for chosen in (examples, examples[1:3]):
        stored = pickle.dumps(chosen)
        assert b"dogs" not in stored and pickle.loads(stored) == chosen
    assert not examples.data.flags.writeable
    stored, path = pickle.dumps(examples), NLVR2.file(places(data)[0])
    path.unlink()
    assert len(list(examples)) == 4  # the mapped file exists as long as it is used
    with pytest.raises(UserError, match="was replaced while it was in use"):
        pickle.loads(stored)


def test_reading_mapped_examples_takes_no_private_memory(tmp_path):
    """Of a forked process, like a data worker, that decodes every example."""
    texts = [f"{number} {'word ' * 100}" for number in range(20_000)]
    (tmp_path / "nlvr2").mkdir()
    official_files.dump_lines(
        tmp_path / "nlvr2" / "dev.json",
        [{"identifier": f"dev-{n}-0-0", "sentence": text, "label": "True"} for n, text in enumerate(texts)],
    )
    examples, queue = open_prepared(tmp_path, NLVR2), FORK.Queue()
    assert isinstance(examples, PackedExamples) and examples.data.nbytes > 10_000_000

    def grown() -> None:
        before = private()
        letters = sum(len(example.text) for example in examples)
        queue.put((letters, private() - before))

    process = FORK.Process(target=grown)
    process.start()
    letters, size = queue.get(timeout=60)
    process.join()
    assert letters == sum(map(len, texts)) and size < 2_000_000


def private() -> int:
    """Bytes of this process that it shares with no other, without pages of mapped files, which others may map."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def number_of(data, number: int, key: str = "") -> int:
    """The content of a file of computed arrays, which is `number` if it has to be computed."""
    arrays = derived_arrays(data, f"set-{number}.nearest", {"key": key}, lambda: {"number": np.array([number])})
    return int(arrays["number"][0])


def test_computed_arrays_that_were_not_used_lately_are_removed(data):
    place = places(data)[0]
    open_prepared(data, NLVR2)
    for number in range(KEPT):
        assert number_of(data, number) == number
        os.utime(place / f"set-{number}.nearest", (number, number))
    assert number_of(data, 0) == 0  # used, therefore the last that is removed
    for number in range(KEPT, KEPT + 3):
        number_of(data, number)
    kept = {int(path.stem.removeprefix("set-")) for path in place.glob("*.nearest")}
    assert kept == {0, *range(4, KEPT + 3)}
    assert NLVR2.file(place).exists()


def test_an_interrupted_computation_leaves_no_file(data):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derived_arrays(data, "set.nearest", {}, interrupted)
    place = places(data)[0]
    assert not place.exists() or not [path for path in place.iterdir() if "nearest" in path.name]
    assert derived_arrays(data, "set.nearest", {}, lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    derived_arrays(data, "set.nearest", {}, interrupted)  # found
