"""One photo under many names: which images of the data sets are the same, and how that is known."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.official import scan

# A name is a collection of photos and an id there: coco:9, genome:2, flickr:1000092795, nlvr2:dev-850-0-img0.


@dataclass(frozen=True)
class Trail:
    """How a photo is known to be a test's.

    test: the task and its split; names: the photo's, from the one in question to the one that the test has; evidence:
    what says that a name and the next are the same photo.
    """

    test: str
    names: tuple[str, ...]
    evidence: tuple[str, ...]


class Photos:
    """Names that are known to be of the same photo, two by two."""

    def __init__(self):
        self.links: dict[str, list[tuple[str, str]]] = {}

    def same(self, one: str, other: str, evidence: str) -> None:
        self.links.setdefault(one, []).append((other, evidence))
        self.links.setdefault(other, []).append((one, evidence))

    def trails(self, tests: dict[str, str]) -> dict[str, Trail]:
        """Every name of the photos of tests (name -> whose test), with the shortest trail to one of these."""
        found = {name: Trail(test, (name,), ()) for name, test in tests.items()}
        waiting = deque(found)
        while waiting:
            name = waiting.popleft()
            for other, evidence in self.links.get(name, ()):
                if other not in found:
                    known = found[name]
                    found[other] = Trail(known.test, (other, *known.names), (evidence, *known.evidence))
                    waiting.append(other)
        return found


class GenomeImage(msgspec.Struct):
    """A record of image_data.json."""

    image_id: int
    coco_id: int | None = None
    flickr_id: int | None = None


def add_genome(photos: Photos, path: Path) -> int:
    """Adds what Visual Genome's image_data.json says of COCO's and Flickr's names; returns how many names it gives."""
    known = 0
    for image in scan(path, list[GenomeImage]):
        for collection, id in (("coco", image.coco_id), ("flickr", image.flickr_id)):
            if id is not None:
                photos.same(f"genome:{image.image_id}", f"{collection}:{id}", path.name)
                known += 1
    return known
