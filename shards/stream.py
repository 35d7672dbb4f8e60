"""Reading shards from front to back, for tars that cannot be mapped: http, pipes, object stores.

Every reader (a data worker of a rank) is given a range of the epoch's samples, by number, and opens only the
shards that the range touches: all readers get the same number of samples within one, whatever the number and
the sizes of the shards, none is read twice, and one shard with eight readers is as well as any.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import webdataset

from shards import hashing
from shards.dataset import FORMAT, Dataset, Shard
from shards.errors import UserError
from shards.files import expand, is_remote
from shards.index import split_name
from shards.sample import MEMBERS, Sample, decode


def open_stream(pattern: str) -> Dataset:
    """The data set behind addresses that webdataset opens; its dataset.json is looked for in the first's folder.

    Without one, the streams are read through once to count their samples.
    """
    urls = expand(pattern)
    folder = urls[0].rpartition("/")[0]
    try:
        with webdataset.gopen(f"{folder}/dataset.json") as file:
            value = json.loads(file.read())
    except (OSError, ValueError, AssertionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return _count(urls)
    shards = {shard["path"]: Shard(**shard) for shard in value.pop("shards")}
    value.pop("format")
    missing = [url for url in urls if url.rpartition("/")[2] not in shards]
    if missing:
        raise UserError(f"{missing[0]}: is not in {folder}/dataset.json")
    return Dataset([replace(shards[url.rpartition("/")[2]], path=url) for url in urls], **value)


def _count(urls) -> Dataset:
    shards, largest, captions = [], -1, 0
    sample = None
    for url in urls:
        samples = 0
        for sample in read_stream(url):
            samples += 1
            captions += bool(sample.caption)
            if sample.class_ids is not None:
                largest = max(largest, int(sample.class_ids.max(initial=-1)))
        if not samples:
            raise UserError(f"{url}: holds no region samples (KEY.features.npy)")
        shards.append(Shard(url, samples, 0))
    per_region = 0 if sample.class_ids is None else sample.class_ids.shape[1]
    return Dataset(shards, sample.features.shape[1], largest + 1, per_region, captions=captions)


def read_stream(url: str, begin: int = 0, end: int | None = None) -> Iterator[Sample]:
    """Samples `begin` to `end` of one tar, read in order; the tar is left as soon as `end` is reached.

    A stream that breaks off is a UserError, and so is one that ends before `end`.
    """
    number = 0
    try:
        with webdataset.gopen(url) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for key, members in _group(tar, begin):
                if end is not None and number >= end:
                    return
                if number >= begin:
                    yield decode(key, members, url)
                number += 1
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{url}: the tar breaks off or is damaged after {number} samples ({error})") from None
    except OSError as error:
        raise UserError(f"{url}: cannot be read ({error.strerror or error})") from None
    if end is not None and number < end:
        raise UserError(f"{url}: ends after {number} samples and not the {end} that were counted before")


def _group(tar, begin: int):
    """(key, member suffix -> bytes) of each sample; members of samples before `begin` are not read."""
    key, members, number = None, {}, 0
    for entry in tar:
        if not entry.isfile():
            continue
        entry_key, suffix = split_name(entry.name)
        if entry_key != key:
            if "features.npy" in members:
                yield key, members
                number += 1
            key, members = entry_key, {}
        if suffix in MEMBERS:
            members[suffix] = tar.extractfile(entry).read() if number >= begin else b""
    if "features.npy" in members:
        yield key, members


def reader_ranges(counts: np.ndarray, readers: int, reader: int, seed: int, epoch: int):
    """Yields (shard, begin, end) for one of `readers` equal parts of an epoch; shards come in shuffled order.

    The parts are disjoint and cover all samples; their sizes differ by one at most.
    """
    counts = np.asarray(counts, np.int64)
    shards = hashing.permutation(hashing.key(seed, epoch, 0), len(counts))
    ends = np.cumsum(counts[shards])
    total = int(ends[-1])
    low, high = total * reader // readers, total * (reader + 1) // readers
    for shard, stop in zip(shards.tolist(), ends.tolist(), strict=True):
        start = stop - int(counts[shard])
        if start < high and stop > low:
            yield shard, max(low, start) - start, min(high, stop) - start


def stream_epoch(
    dataset: Dataset, seed: int, epoch: int, readers: int = 1, reader: int = 0, buffer: int = 1000
) -> Iterator[tuple[int, Sample]]:
    """(sample number, sample) for one reader's part of an epoch, shuffled through a buffer of samples."""
    begins = np.concatenate([[0], np.cumsum(dataset.counts)])
    random_key, drawn = hashing.key(seed, epoch, 2, reader), 0
    held: list[tuple[int, Sample]] = []
    for shard, begin, end in reader_ranges(dataset.counts, readers, reader, seed, epoch):
        numbers = range(int(begins[shard]) + begin, int(begins[shard]) + end)
        for number, sample in zip(numbers, read_stream(dataset.shards[shard].path, begin, end), strict=True):
            held.append((number, sample))
            if len(held) > buffer:
                yield held.pop(_pick(random_key, drawn, len(held)))
                drawn += 1
    while held:
        yield held.pop(_pick(random_key, drawn, len(held)))
        drawn += 1


def _pick(random_key: int, counter: int, limit: int) -> int:
    return int(hashing.below(hashing.draw(np.array([random_key]), np.array([counter])), limit)[0])


def is_stream(pattern: str) -> bool:
    """Whether a --data pattern must be streamed, because any part of it is not a local file."""
    return any(is_remote(name) for name in expand(pattern))
