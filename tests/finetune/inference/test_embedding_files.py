"""Files of texts to embed."""

import os

import pytest

from finetune.inference.embedding_files import read_texts
from shards.common.errors import UserError


def test_texts_are_lines(tmp_path):
    (tmp_path / "texts").write_bytes("a star\r\nzwei Kreise\n".encode("utf-16"))
    assert read_texts(str(tmp_path / "texts")) == ["a star", "zwei Kreise"]


def test_a_text_is_a_line_whatever_else_separates_lines_elsewhere(tmp_path):
    texts = ["a red square", "a blue\u2028circle", "a green star\x0cshape", "last\x1cone"]
    (tmp_path / "texts").write_bytes("\r\n".join(texts).encode() + b"\r\n")
    assert read_texts(str(tmp_path / "texts")) == texts


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"--texts .*pipe: is a named pipe; give a file"):
        read_texts(str(tmp_path / "pipe"))
