"""Tars with headers on which tarfile raises anything, reads for ever, or gives more bytes than there are."""

import tarfile

import pytest

from shards.common.errors import UserError
from shards.images.image_files import read_source
from shards.storage.index import read_headers
from shards.storage.stream import read_stream

END = bytes(1024)
TIMES = 3000  # more than Python's limit of recursion, by which tarfile reads headers that extend the next one
LOOP, FAR = -512, 2**80  # sizes: back to the entry's own header; beyond any file


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(name: str, size: int, kind: bytes = b"0", size_field: bytes | None = None, sparse: bytes = b"") -> bytes:
    """size_field: instead of the size in octal; sparse: what begins at offset 386, in headers of GNU tar."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    data = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    if size_field:
        data[124:136] = size_field
    data[386 : 386 + len(sparse)] = sparse
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def binary(size: int) -> bytes:
    """A size field in base 256, as for files of more than 8 GB."""
    return (size % 2**96 | (1 << 95 if size >= 0 else 0)).to_bytes(12, "big")


def extended(*records: bytes) -> bytes:
    """A header of POSIX tar with further fields of the next entry."""
    data = b"".join(map(_record, records))
    return header("pax", len(data), b"x") + blocks(data)


def _record(field: bytes) -> bytes:
    length = next(n for n in range(len(field) + 2, len(field) + 9) if n == len(b"%d %b\n" % (n, field)))
    return b"%d %b\n" % (length, field)


PLAIN = header("a.features.npy", 3) + blocks(b"abc")
SPARSE = b"GNU.sparse.major=1", b"GNU.sparse.minor=0"
HOSTILE = {
    "digits": header("pax", 5008, b"x") + blocks(b"9" * 5000 + b" path=x\n") + PLAIN,
    "no map": extended(*SPARSE, b"GNU.sparse.realsize=10") + PLAIN,
    "words in the map": extended(b"GNU.sparse.map=a,b", b"GNU.sparse.size=10") + PLAIN,
    "a word as size": extended(b"GNU.sparse.size=many") + PLAIN,
    "a petabyte of zeros": extended(*SPARSE, b"GNU.sparse.realsize=%d" % 10**15)
    + header("a.features.npy", 512)
    + blocks(b"1\n0\n3\n"),
    "holes of GNU tar": header("a.features.npy", 512, b"S", sparse=b"00000000000\x0000000001000\x00") + blocks(b"a"),
    "a negative size": extended(b"size=-1000") + PLAIN,
    "a size of 30 digits": extended(b"size=" + b"9" * 30) + PLAIN,
    "a size beyond any file": header("a.features.npy", 3, size_field=binary(FAR)) + blocks(b"abc"),
    "a size back to itself": PLAIN + header("b.features.npy", 0, size_field=binary(LOOP)),
    "many extensions": extended(b"comment=x") * TIMES + PLAIN,
    "many long names": (header("././@LongLink", 5, b"L") + blocks(b"name\0")) * TIMES + PLAIN,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_one_sentence(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE[name] + END)
    with pytest.raises(UserError, match=r"a\.tar: is not a complete tar \(.*\); fetch or make it again$"):
        list(read_headers(path))
    with pytest.raises(UserError, match=r"a\.tar: (the tar is truncated or damaged|cannot be read)"):
        list(read_stream(str(path)))
    with pytest.raises(UserError, match=r"a\.tar: is not a complete tar"):
        read_source(f"{path}#a.features.npy")


def test_a_member_of_a_tar_is_read_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(PLAIN + END)
    assert read_source(f"{tmp_path}/a.tar#a.features.npy") == b"abc"
    with pytest.raises(UserError, match=r"a\.tar#b\.png: the image cannot be read"):
        read_source(f"{tmp_path}/a.tar#b.png")
