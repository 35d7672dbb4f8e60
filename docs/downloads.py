"""Writes the table of downloads.md from finetune/reporting/downloads.toml: python docs/downloads.py"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
sys.path[0] = str(PAGE.parents[1])

from finetune.reporting.downloads import DataSet, Place, download_table

HEADER = "| data set and files | place | state | source | licence |\n|---|---|---|---|---|\n"
TABLE = re.compile(r"\| data set and files \|.*?(?=\n\n|\Z)", re.DOTALL)


def table() -> str:
    """The table in Markdown: a row for each place; the first row of a data set has its files and licence."""
    rows = [row(data_set, place) for data_set in download_table().data_set for place in data_set.places]
    return HEADER + "\n".join(rows)


def row(data_set: DataSet, place: Place) -> str:
    first = place is data_set.places[0]
    files = ", ".join(f"`{file}`" for file in data_set.files)
    at = re.sub(r"https?://[^\s,;)]+", r"<\g<0>>", place.at.replace("{file}", "FILE"))
    cells = [
        f"**{data_set.title}**: {files}" if first else "",
        at,
        place.report(),
        f"[source]({place.source})",
        (data_set.licence or "not stated") if first else "",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """The text of the page with the current table."""
    return TABLE.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
