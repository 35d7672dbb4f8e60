"""Texts are decoded as what they are, with or without a byte order mark."""

import pytest

from shards.parsing.text_encoding import decode_text

TEXT = "two red circles, zwei Kreise über 3 Sternen\nand a square"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_each_encoding_gives_the_text(encoding):
    assert decode_text(TEXT.encode(encoding)) == TEXT


def test_utf16_without_many_latin_letters_is_recognised():
    assert decode_text("两个红色的圆圈 AB".encode("utf-16-le")) == "两个红色的圆圈 AB"


@pytest.mark.parametrize("nul", ["a star\0 and a square", "a star\0\0\0\0\0\0\0\0", "\0a star", "ein größerer Stern\0"])
def test_a_nul_does_not_make_utf8_another_encoding(nul):
    """One NUL in an English caption made it Chinese."""
    assert decode_text(nul.encode()) == nul.replace("\0", " ")


def test_other_encodings_are_refused():
    with pytest.raises(ValueError):
        decode_text("ein größerer Stern".encode("latin-1"))
