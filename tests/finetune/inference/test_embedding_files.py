"""Files of texts to embed."""

import os

import pytest

from finetune.inference.embedding_files import read_texts
from shards.common.errors import UserError


def test_texts_are_lines(tmp_path):
    (tmp_path / "texts").write_bytes("a star\r\nzwei Kreise\n".encode("utf-16"))
    assert read_texts(str(tmp_path / "texts")) == ["a star", "zwei Kreise"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--texts .*pipe: is a named pipe; give a file"):
        read_texts(str(tmp_path / "pipe"))
