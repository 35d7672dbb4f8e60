"""Decoding of texts with unknown encoding."""

import codecs

# UTF-32 first: its little-endian byte order mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(begin: bytes) -> str:
    """The encoding of a text by its first four bytes: that of a byte order mark, else UTF-8."""
    return next((encoding for mark, encoding in _MARKS if begin.startswith(mark)), "utf-8")


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, UTF-16 without a byte order mark, or the encoding of a byte order mark.

    NUL characters, which damaged or padded texts contain, become spaces.

    Raises:
        ValueError: it is none of these.
    """
    if (marked := encoding_of(data[:4])) != "utf-8":
        return data.decode(marked)
    low, high = data[::2].count(0), data[1::2].count(0)  # in UTF-16 every second byte of Latin letters is 0
    utf16 = "utf-16-le" if high > low else "utf-16-be"
    if max(low, high) >= len(data) / 4 and min(low, high) <= max(low, high) / 4:
        return data.decode(utf16)
    try:
        return data.decode().replace("\0", " ")
    except UnicodeDecodeError:
        if 0 in data:  # UTF-16 with few Latin letters
            return data.decode(utf16)
        raise
