"""Whole files and patterns."""

import errno
import os
import threading

import numpy as np
import pytest

from shards.common.errors import UserError
from shards.common.files import (
    expand,
    files_below,
    is_remote,
    naming,
    printable,
    read_json,
    whole_file,
    write_json,
)
from shards.parsing.tensor_files import read_state_dict


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path):
    """A file of its own in its place would be the end of /dev/null, for whoever may write to /dev."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with whole_file(pipe, "w") as file:
        file.write("all of it")
    reader.join(10)
    assert read == ["all of it"] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "elsewhere" / "target.json"
    link.symlink_to(target)
    for text in ("first", "second"):
        with whole_file(link, "w") as file:
            file.write(text)
        assert link.is_symlink() and target.read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link.json", "target.json"]


def test_patterns_name_files_in_order(tmp_path):
    for name in ("b-1.tar", "b-0.tar", "b-10.tar", "c.txt", ".b-3.tar.part"):
        (tmp_path / name).touch()
    names = [str(tmp_path / name) for name in ("b-0.tar", "b-1.tar")]
    assert expand(f"{tmp_path}/b-{{0..1}}.tar") == names
    assert expand(f"{tmp_path}/b-?.tar") == names
    assert len(expand(str(tmp_path))) == 3
    assert expand("http://x/{0..1}.tar") == ["http://x/0.tar", "http://x/1.tar"]


def test_a_folder_with_braces_in_its_name_is_that_folder(tmp_path):
    folder = tmp_path / "a{1,2}"
    folder.mkdir()
    (folder / "0.tar").touch()
    assert expand(str(folder)) == expand(str(folder / "0.tar")) == [str(folder / "0.tar")]


@pytest.mark.parametrize("pattern", ["missing", "missing-{0..3}.tar", "a{b", ""])
def test_what_names_nothing_is_an_error(tmp_path, pattern, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        expand(pattern)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"contains no \.tar files"):
        expand(str(tmp_path))


def test_remote_addresses_are_told_from_paths():
    assert all(map(is_remote, ["pipe:cat x", "http://a/b.tar", "s3://b/c.tar", "gs://b/c"]))
    assert not any(map(is_remote, ["a/b.tar", "/a.tar", "file:///a.tar", "c:x"]))


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_files_are_found_behind_links_and_each_folder_is_searched_once(tmp_path):
    for name in ("in/a/1.x", "in/2.x", "in/2.y", "elsewhere/b/3.x", "in/.hidden/4.x", "in/__MACOSX/._1.x", "in/._2.x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "twice").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    found = files_below(tmp_path / "in", lambda name: name.endswith(".x"))
    assert [os.path.relpath(file, tmp_path / "in") for file in found] == ["2.x", "a/1.x", "linked/b/3.x"]


def test_a_name_that_is_not_utf_8_can_be_printed():
    assert printable(os.fsdecode(b"a\xff.x")) == "a\\xff.x" and printable("\u00e9.x") == "\u00e9.x"


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".a.json.part").write_text("half of a long file" * 100)
    write_json(tmp_path / "a.json", 1)
    assert read_json(tmp_path / "a.json") == 1 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a", "w") as one:
        with whole_file(tmp_path / "a", "w") as two:
            one.write("1")
            two.write("2")
        assert (tmp_path / "a").read_text() == "2"
    assert (tmp_path / "a").read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    for write in (lambda file: file.write(b"0"), lambda file: np.savez(file, a=np.zeros(9))):
        refused = pytest.raises(UserError, match=r"full: cannot be written \(No space left on device\)")
        with refused, whole_file(tmp_path / "full") as file:
            write(file)
    with pytest.raises(RuntimeError, match="another"), naming("a"):
        raise RuntimeError("another mistake")
    for error in (RuntimeError("unexpected pos 801408"), Exception("I/O error: No space left on device (os error 28)")):
        with pytest.raises(UserError, match=r"w\.bin: cannot be written \(No space left on device\)"), naming("w.bin"):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                raise error from None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_quotas_and_limits_name_the_file_where_a_library_has_no_error_number(number):
    message = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"  # of safetensors
    with pytest.raises(UserError, match=rf"w: cannot be written \({os.strerror(number)}\)"), naming("w"):
        raise Exception(message)


def test_what_may_not_be_written_is_named_and_not_its_temporary_file(tmp_path, monkeypatch):
    def refuse(name, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)  # the tests may run as root, who may write everywhere
    with pytest.raises(PermissionError) as refused, whole_file(tmp_path / "inspect.png"):
        pass
    assert refused.value.filename == str(tmp_path / "inspect.png")


def test_pipes_and_devices_are_no_input(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    for read in (read_json, lambda path: expand(str(path)), lambda path: read_state_dict(path)):
        with pytest.raises(UserError, match=r"a\.json: is a named pipe; give a file"):
            read(tmp_path / "a.json")
    with pytest.raises(UserError, match="/dev/zero: is a socket or a device"):
        read_json("/dev/zero")


def test_of_a_long_message_the_beginning_and_the_end_are_kept():
    said = str(UserError(f"--images {'x' * 100_000}: no such file or folder"))
    assert len(said) < 2100 and said.startswith("--images xxx") and said.endswith("xxx: no such file or folder")
