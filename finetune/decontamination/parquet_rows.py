"""Rows of parquet files with images or their URLs, as Hugging Face datasets, LAION and CC12M have them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.common.errors import UserError
from shards.common.files import printable
from shards.common.image_id import image_id
from shards.common.untrusted_input import reading, refuse_special_file

ID_COLUMNS = ("key", "__key__", "id", "image_id")
BATCH = 256  # rows


@dataclass(frozen=True)
class ParquetRow:
    """A row with an image. id: of ID_COLUMNS, the file name of the image, its URL, or the number of the row."""

    id: str
    source: str
    urls: list[str]
    picture: bytes | None
    sha256: str


def parquet_rows(path: str) -> Iterator[ParquetRow]:
    """Yields the rows of a parquet file in order, in batches.

    Images are columns of bytes, or of structs with `bytes` and `path`; URLs are columns of strings whose names contain
    `url`.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or it has no column of images or URLs.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs the package pyarrow (pip install 'twelve-in-one[parquet]')") from None
    refuse_special_file(path)
    with reading(path):
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        file = pyarrow.parquet.ParquetFile(path)
        kinds = {field.name: field.type for field in file.schema_arrow}

        def of_kind(*checks) -> list[str]:
            return [name for name, kind in kinds.items() if any(check(kind) for check in checks)]

        types = pyarrow.types
        strings = of_kind(types.is_string, types.is_large_string)
        structs = [name for name in of_kind(types.is_struct) if kinds[name].get_field_index("bytes") >= 0]
        images = structs + of_kind(types.is_binary, types.is_large_binary)
        urls = [name for name in strings if "url" in name.lower()]
        ids = [name for name in ID_COLUMNS if name in kinds]
        if not images and not urls:
            raise UserError(f"{path}: has no column of images (bytes) or of URLs; its columns are {', '.join(kinds)}")
        columns = [*images[:1], *urls, *ids[:1], *(name for name in ("sha256",) if name in strings)]
        number = 0
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            for row in batch.to_pylist():
                yield _row(path, number, row, images[:1], urls, ids[:1])
                number += 1


def _row(path: str, number: int, row: dict, images: list[str], urls: list[str], ids: list[str]) -> ParquetRow:
    value = row[images[0]] if images else None
    place = value.get("path") if isinstance(value, dict) else None
    picture = value.get("bytes") if isinstance(value, dict) else value
    found = [row[name] for name in urls if row[name]]
    given = row[ids[0]] if ids else None
    if given is not None:
        id = image_id(str(given))
    elif place:
        id = image_id(place)
    else:
        id = found[0] if found else str(number)
    member = place or f"row {number}"
    return ParquetRow(id, f"{printable(path)}#{member}", found, picture, row.get("sha256") or "")
