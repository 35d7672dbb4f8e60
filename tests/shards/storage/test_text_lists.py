"""Texts in one array of bytes."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.storage import text_lists
from shards.storage.text_lists import PackedTexts

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))


@given(TEXTS)
def test_texts_come_back_as_they_were(given):
    lines = np.frombuffer("".join(text + "\n" for text in given).encode() + b"no line", np.uint8)
    for packed in (PackedTexts.of(given), PackedTexts.of_lines(lines)):
        assert packed == given and list(packed) == given and len(packed) == len(given)
        assert [packed[n] for n in range(-len(given), len(given))] == given * 2
        assert packed[1:-1] == given[1:-1] and packed == pickle.loads(pickle.dumps(packed))
        assert packed != [*given, ""]
        with pytest.raises(IndexError):
            packed[len(given)]


@given(TEXTS, st.integers(0, 9), st.integers(0, 9))
def test_parts_and_joins_are_those_of_a_list(given, begin, size):
    packed = PackedTexts.of(given)
    begin = min(begin, len(given))
    end = min(begin + size, len(given))
    part = packed.part(begin, end)
    assert part == given[begin:end]
    assert PackedTexts.joined([part, packed, part]) == given[begin:end] + given + given[begin:end]
    assert PackedTexts.joined([]) == [] and PackedTexts.joined([part]) is part


def test_a_file_is_decoded_in_parts_that_may_cut_a_letter(monkeypatch):
    monkeypatch.setattr(text_lists, "AT_ONCE", 3)
    given = ["ÿé", "", "a", "漢字 x"]
    assert PackedTexts.of_lines(np.frombuffer("\n".join([*given, ""]).encode(), np.uint8)) == given
    for broken in (b"ab\xff\n", b"abc\xc3"):
        with pytest.raises(UnicodeDecodeError):
            PackedTexts.of_lines(np.frombuffer(broken, np.uint8))


def test_many_texts_are_iterated_in_blocks(monkeypatch):
    monkeypatch.setattr(text_lists, "BLOCK", 4)
    given = [f"text {n}" for n in range(11)]
    assert list(PackedTexts.of(given)) == given


def private_memory() -> int:
    """Bytes of this process that it shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(1024 * int(line.split()[1]) for line in file if line.startswith("Private_"))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="of Linux")
def test_a_forked_process_that_reads_captions_copies_none():
    """Python strings would be copied, page by page, as their reference counts are written."""
    from pretrain.data.caption_pairs import Captions

    count = 200_000
    captions = Captions(f"the caption with the number {n} and some more words behind it" for n in range(count))
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            before = private_memory()
            for number in range(count):
                captions[number]
            os.write(writer, str(private_memory() - before).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    grown = int(os.read(reader, 30))
    assert grown < 4e6 < captions.texts.data.nbytes
