"""The report on test images in a corpus."""

from collections import Counter
from dataclasses import dataclass

from finetune.decontamination.corpus_part import CHECKSUM, LOOK, FoundImage, PartResult
from finetune.decontamination.perceptual_hash import DIFFERENT
from shards.common.counted import counted

KINDS = {"file name": "file name", "URL": "URL", "source": "file name", "--collection": "id"}
COLUMNS = ("file name", "URL", "id", CHECKSUM, LOOK)


@dataclass
class CorpusCounts:
    """Totals of a search.

    sets: test set -> (photos, photos with an image), of the known test sets.
    """

    corpus: str
    parts: int
    images: int
    pictures: int
    unreadable: int
    bare: int
    excluded: int
    sets: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, corpus: str, results: list[PartResult], excluded: int, sets) -> "CorpusCounts":
        return cls(
            corpus,
            len(results),
            sum(result.images for result in results),
            sum(result.pictures for result in results),
            sum(len(result.unseen) for result in results),
            sum(result.bare for result in results),
            excluded,
            sets,
        )


TEST_IMAGES = ("of them is a test image", "of them are test images")


def evidence_kinds(found: FoundImage) -> set[str]:
    """How an image was found: some of COLUMNS."""
    first = {chain.evidence[0] for chain in found.chains}
    kinds = {KINDS.get(evidence.partition(" ")[0], KINDS.get(evidence, "")) for evidence in first} - {""}
    return kinds | ({CHECKSUM} & first) | ({LOOK} if any(one.startswith(f"{LOOK} (") for one in first) else set())


def corpus_report(counts: CorpusCounts, found: list[FoundImage], absent: list[str]) -> str:
    """The report as text: a table per test set, and what was not compared."""
    lines = [
        f"{counts.corpus}: {counted(counts.images, 'image')}, {counted(len(found), *TEST_IMAGES)} "
        f"({counted(counts.excluded, 'id')})",
        "",
        f"{'test set':<28} {'photos':>8} {'images':>8} {'found':>8}   " + " ".join(f"{kind:>9}" for kind in COLUMNS),
    ]
    photos: dict[str, set[str]] = {name: set() for name in counts.sets}
    of_set: dict[str, Counter[str]] = {name: Counter() for name in counts.sets}
    for one in found:
        kinds = evidence_kinds(one)
        for name in one.tests:
            of_set[name].update(kinds)
            photos[name] |= {*one.photos}
    for name, (known, pictured) in counts.sets.items():
        columns = " ".join(f"{of_set[name][kind]:>9}" for kind in COLUMNS)
        lines.append(f"{name:<28} {known:>8} {pictured:>8} {len(photos[name]):>8}   {columns}")
    every = Counter(kind for one in found for kind in evidence_kinds(one))
    columns = " ".join(f"{every[kind]:>9}" for kind in COLUMNS)
    lines += [f"{'all, images of the corpus':<28} {'':>8} {'':>8} {len(found):>8}   {columns}", ""]
    lines += [
        "photos: in the test set; images: photos whose appearance is known; found: photos found in the corpus;",
        "then the number of images of the corpus that were found by each kind of evidence",
    ]
    return "\n".join(lines + _not_compared(counts, found) + [f"not found: {what}" for what in absent])


def _not_compared(counts: CorpusCounts, found: list[FoundImage]) -> list[str]:
    """Sentences on what the search did not see, and on what it found by names that may not be those of the images."""
    differing = sum(one.difference is not None and one.difference > DIFFERENT for one in found)
    doubtful = counted(
        differing,
        "image was found by name or checksum, but looks different; is its name an id of the data set?",
        "images were found by name or checksum, but look different; are their names ids of the data set?",
    )
    return not_compared(counts) + ([f"note: {doubtful}"] if differing else [])


def not_compared(counts: CorpusCounts) -> list[str]:
    """Sentences on what a search did not see, and therefore does not certify."""
    without = counts.images - counts.pictures - counts.unreadable
    unknown = sum(known - pictured for known, pictured in counts.sets.values())
    notes = [
        (
            without,
            "image of the corpus has no picture and was compared by its name only",
            "images of the corpus have no picture and were compared by names only",
        ),
        (
            counts.unreadable,
            "image of the corpus cannot be decoded and was compared by its name only (unseen.jsonl)",
            "images of the corpus cannot be decoded and were compared by names only (unseen.jsonl)",
        ),
        (
            unknown,
            "photo of the test sets has no known image and was compared by its name only",
            "photos of the test sets have no known image and were compared by names only",
        ),
        (
            counts.bare,
            "image of the corpus has a number as name; if it is the id of a data set, set --collection",
            "images of the corpus have a number as name; if it is the id of a data set, set --collection",
        ),
    ]
    return [f"note: {counted(number, one, several)}" for number, one, several in notes if number]
