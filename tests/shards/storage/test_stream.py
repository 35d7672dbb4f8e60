"""What is said of addresses that cannot be read; how streams are read stands with what reads them, in pretrain."""

import io

import pytest

from shards.common.errors import UserError
from shards.storage.stream import open_stream


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("pipe:exit 3", r"pipe:exit 3: cannot be read \(the program that reads it ended with status 3\)$"),
        ("s3://bucket/{0..3}.tar", r"webdataset does not support s3: URLs.*--data 'pipe:aws s3 cp s3://"),
        (
            "http://127.0.0.1:1/x.tar",
            r"x\.tar: cannot be read \(the program that reads it ended with status 7, no connection\)$",
        ),
    ],
)
def test_an_address_that_cannot_be_read_is_said_in_a_sentence(address, sentence):
    with pytest.raises(UserError, match=sentence):
        open_stream(address)


def test_a_file_that_a_server_does_not_have_is_told_from_a_server_that_is_not_there(tmp_path, http_folder):
    with pytest.raises(UserError, match=r"x\.tar: cannot be read \(.*status 22, HTTP error\)$"):
        open_stream(f"{http_folder(tmp_path)}/x.tar")


def test_a_program_that_reads_addresses_and_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs the program curl, which is not installed"):
        open_stream("http://127.0.0.1:1/x.tar")


def test_no_folder_is_looked_into_for_a_command(tmp_path, monkeypatch):
    """A command line without a slash would have the root directory for its folder."""
    opened = []
    monkeypatch.setattr("shards.storage.stream._open", lambda url: opened.append(url) or io.BytesIO())
    with pytest.raises(UserError):
        open_stream("pipe:some command")
    assert set(opened) == {"pipe:some command"}
