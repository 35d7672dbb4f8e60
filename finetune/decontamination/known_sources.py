"""Where known test sets come from: the official files of the tasks with their images, or a folder of images."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from finetune.decontamination.image_identity import Photos
from finetune.decontamination.image_lists import identities, read_all, test_photos
from finetune.decontamination.known_tests import ImageFingerprint, KnownName, KnownTests, Pictures, fingerprint_part
from finetune.decontamination.near_duplicates import image_files, print_skipped
from shards.common.errors import UserError
from shards.common.files import printable
from shards.common.image_id import image_id, photo_names
from shards.common.process_pool import run_tasks
from shards.images.image_files import Part, find_parts, split_source

PART = 500  # images per job


def known_names(photos: Photos, tests: dict[str, list[str]]) -> dict[str, KnownName]:
    """Every name of a test photo, with its chain of links and all test sets that contain the photo.

    tests: name -> test sets.
    """
    paths = photos.paths_to_tests({name: sets[0] for name, sets in tests.items()})
    found: dict[str, KnownName] = {}
    for names in _same_photo(photos, paths):
        sets = tuple(sorted({test for name in names for test in tests.get(name, ())}))
        for name in names:
            found[name] = KnownName(min(names), sets, paths[name].names, paths[name].evidence)
    return dict(sorted(found.items()))


def _same_photo(photos: Photos, names: Iterable[str]) -> Iterator[list[str]]:
    """Groups of names of the same photo."""
    seen: set[str] = set()
    for first in names:
        group = [] if first in seen else [first]
        seen.add(first)
        for name in group:  # it grows
            new = [other for other, _ in photos.links.get(name, ()) if other not in seen]
            group += dict.fromkeys(new)
            seen.update(new)
        if group:
            yield group


def tests_of_data(data: str, images: str | None, validation: bool, processes: int) -> tuple[KnownTests, list[str]]:
    """The test sets of the tasks in a data folder.

    Args:
        images: folder with one folder of images per collection, see near_duplicates.image_files; None for none.
        validation: validation splits count as test sets.

    Returns:
        The test sets, and sentences on official files that were not found.
    """
    found = read_all(data, processes)
    photos, tests = identities(data, found), test_photos(data, found, validation)
    if not tests:
        raise UserError(f"--data {data}: found no test images; {'; '.join(found.absent)}")
    names = known_names(photos, tests)
    files = {name: path for name, path in image_files(images).items() if name in names} if images else {}
    own = sorted(files)
    parts = [
        Part([str(files[name]) for name in own[begin : begin + PART]], len(own[begin : begin + PART]))
        for begin in range(0, len(own), PART)
    ]
    name_of = {printable(str(path)): name for name, path in files.items()}
    return KnownTests(names, _pictures(parts, processes, name_of.__getitem__)), found.absent


def tests_of_images(images: str, name: str, collection: str | None, processes: int) -> KnownTests:
    """A test set of one's own images.

    Args:
        images: a folder of images, or a pattern of images or tars.
        name: of the test set.
        collection: the data set whose ids the file names are; None for names that are known to this test set only.
    """
    names: dict[str, KnownName] = {}

    def photo(source: str) -> str:
        place = printable(split_source(source)[1] or source)
        stated = f"{collection}:{image_id(place)}" if collection else next(iter(photo_names(place)), "")
        found = stated or f"{name}:{image_id(place)}"
        names[found] = KnownName(found, (name,), (found,))
        return found

    pictures = _pictures(find_parts(images, PART), processes, photo)
    return KnownTests(dict(sorted(names.items())), pictures)


def _pictures(parts: list[Part], processes: int, photo: Callable[[str], str]) -> Pictures:
    """The images of test photos. photo: maps the source of an image to the name of its photo."""
    jobs = dict(run_tasks(fingerprint_part, parts, processes, sum(part.count for part in parts), "images"))
    rows: list[tuple[str, ImageFingerprint]] = []
    bad: list[str] = []
    for number in range(len(parts)):
        for found in jobs[number]:
            name = photo(found.source)
            if found.hashes is None:
                bad.append(f"{found.source}: {found.bad}")
            else:
                rows.append((name, found))
    print_skipped(bad)
    if not rows:
        return Pictures()
    return Pictures(
        [name for name, _ in rows],
        np.frombuffer(b"".join(found.sha256 for _, found in rows), np.uint8).reshape(-1, 32),
        np.stack([found.hashes for _, found in rows]),
        [found.thumbnail for _, found in rows],
    )
