"""Identity of photos across data sets: links between the names of the same photo, with their evidence."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from finetune.annotations.official_files import scan, scan_list
from shards.common.image_id import photo_names

# The name of a photo is its collection and its id there: coco:9, genome:2, flickr:1000092795, nlvr2:dev-850-0-img0.


@dataclass(frozen=True)
class LinkPath:
    """The chain of links from a photo name to a test photo.

    test: "task split" of the test set; names: of the photo, from the given name to the one in the test set; evidence:
    the source of the link between each name and the next.
    """

    test: str
    names: tuple[str, ...]
    evidence: tuple[str, ...]


class Photos:
    """A graph whose edges link two names of the same photo."""

    def __init__(self):
        self.links: dict[str, list[tuple[str, str]]] = {}

    def same(self, one: str, other: str, evidence: str) -> None:
        self.links.setdefault(one, []).append((other, evidence))
        self.links.setdefault(other, []).append((one, evidence))

    def paths_to_tests(self, tests: dict[str, str]) -> dict[str, LinkPath]:
        """Every name of a test photo -> its shortest path to a name in `tests` (name -> "task split")."""
        found = {name: LinkPath(test, (name,), ()) for name, test in tests.items()}
        waiting = deque(found)
        while waiting:
            name = waiting.popleft()
            for other, evidence in self.links.get(name, ()):
                if other not in found:
                    known = found[name]
                    found[other] = LinkPath(known.test, (other, *known.names), (evidence, *known.evidence))
                    waiting.append(other)
        return found


class GenomeImage(msgspec.Struct):
    """A record of image_data.json."""

    image_id: int
    coco_id: int | None = None
    flickr_id: int | None = None


def add_genome(photos: Photos, path: Path) -> int:
    """Adds the links of Visual Genome's image_data.json to COCO and Flickr ids; returns the number of links."""
    known = 0
    for image in scan(path, list[GenomeImage]):
        for collection, id in (("coco", image.coco_id), ("flickr", image.flickr_id)):
            if id is not None:
                photos.same(f"genome:{image.image_id}", f"{collection}:{id}", path.name)
                known += 1
    return known


class CocoImage(msgspec.Struct):
    """An image record of COCO's annotations, which RefCOCO's instances.json repeats."""

    id: int
    flickr_url: str = ""


def add_coco(photos: Photos, path: Path) -> int:
    """Adds the links of COCO's image records to the photos on Flickr; returns the number of links."""
    known = 0
    for _, image in scan_list(path, "images", "image", CocoImage):
        for name in photo_names(image.flickr_url):
            photos.same(f"coco:{image.id}", name, path.name)
            known += 1
    return known
