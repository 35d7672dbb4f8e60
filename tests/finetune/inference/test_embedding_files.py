"""Files of texts to embed."""

import os

import numpy as np
import pytest

from finetune.inference.embedder import Embeddings
from finetune.inference.embedding_files import EmbeddedImages, embed_all, read_texts
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


def test_a_caption_that_is_too_long_is_named_by_its_image():
    embedded = Embeddings(np.zeros((2, 3), np.float32), [])
    images = EmbeddedImages(["a", "b"], [("a star",), ("a circle", "x" * 10_001)], embedded, lambda number: None)
    with pytest.raises(UserError, match=r"^image b: a caption has 10001 characters; at most 10000 are allowed$"):
        embed_all(None, [images], [], captions=True, parts=False)
    assert list(embed_all(None, [images], [], captions=False, parts=False)) == ["image_ids", "image_embeddings"]


def test_a_text_that_is_too_long_is_named_by_its_line(tmp_path):
    (tmp_path / "texts").write_text("a star\n" + "x" * 10_001)
    with pytest.raises(UserError, match=r"^--texts .*texts, line 2: the text has 10001 characters; at most 10000"):
        read_texts(str(tmp_path / "texts"))
