"""Small data sets of random regions for the tests."""

import numpy as np

from shards.storage.dataset import finish_dataset
from shards.storage.sample import Sample
from shards.storage.writer import write_shard

COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]
THINGS = ["cat", "dog", "tree", "house", "car", "bird"]


def make_samples(
    count: int, *, features=12, classes=9, per_region=3, captions=True, per_image=1, regions=(1, 6), seed=0
):
    """Random samples with `per_image` captions each, of which the first are all different."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        n = int(rng.integers(regions[0], regions[1] + 1))
        corner = rng.random((n, 2)) * 0.6
        boxes = np.concatenate([corner, corner + 0.1 + 0.3 * rng.random((n, 2))], 1)
        probs = np.sort(rng.random((n, per_region)) / per_region, 1)[:, ::-1]
        caption = f"a {COLOURS[number % 8]} {THINGS[number // 8 % 6]} number {number // 48}"
        samples.append(
            Sample(
                key=f"k{seed}_{number:05d}",
                features=rng.normal(size=(n, features)).astype(np.float16),
                boxes=boxes.astype(np.float32),
                class_ids=np.stack([rng.permutation(classes)[:per_region] for _ in range(n)]) if classes else None,
                class_probs=probs if classes else None,
                info={"id": f"image.{seed}.{number}", "width": 100, "height": 80, "source": "nowhere.png"},
                captions=(caption, *(f"{caption}, seen {n} times" for n in range(1, per_image))) if captions else (),
            )
        )
    return samples


def make_dataset(folder, counts=(7, 5), classes=9, first=0, **options):
    """A data set of region shards in `folder`, with `counts` samples in its shards. first: seed of the first shard."""
    paths = []
    for number, count in enumerate(counts):
        paths.append(folder / f"part-{number:05d}.tar")
        write_shard(paths[-1], make_samples(count, seed=first + number, classes=classes, **options))
    return finish_dataset(folder, paths, detector="random", num_classes=classes, extra={})
