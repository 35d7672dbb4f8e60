"""Reading shards from front to back, for tars that cannot be mapped: http, pipes, object stores.

Every reader (a data worker) is given a range of positions in the epoch's sequence of samples and opens only the
shards that the range touches: the ranges are as long as whoever divides them likes, whatever the number and the
sizes of the shards, no sample is read twice, and one shard with eight readers is as well as any.
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
from shards.files import expand
from shards.index import split_name
from shards.sample import MEMBERS, Sample, decode


def open_stream(pattern: str) -> tuple[Dataset, list[str]]:
    """The data set behind addresses that webdataset opens, and the caption of every sample in order.

    dataset.json and captions.txt are looked for in the first address's folder. Where either is missing the
    streams are read through once, to count their samples and collect their captions.
    """
    urls = expand(pattern)
    folder = urls[0].rpartition("/")[0]
    value, lines = _read(f"{folder}/dataset.json"), _read(f"{folder}/captions.txt")
    try:
        value = json.loads(value or b"null")
        texts = None if lines is None else lines.decode().split("\n")[:-1]
    except ValueError:
        raise UserError(f"{folder}: its dataset.json or captions.txt cannot be read; remove it or mend it") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT or texts is None:
        return _read_through(urls)
    shards = {shard["path"]: Shard(**shard) for shard in value.pop("shards")}
    value.pop("format")
    if len(texts) != sum(shard.samples for shard in shards.values()):
        raise UserError(f"{folder}/captions.txt: does not have one line for every sample of dataset.json")
    places, captions, begin = {}, [], 0
    for name, shard in shards.items():
        places[name] = slice(begin, begin + shard.samples)
        begin += shard.samples
    for url in urls:
        name = url.rpartition("/")[2]
        if name not in shards:
            raise UserError(f"{url}: is not in {folder}/dataset.json")
        captions += texts[places[name]]
    return Dataset([replace(shards[url.rpartition("/")[2]], path=url) for url in urls], **value), captions


def _read(url: str) -> bytes | None:
    """What is behind an address, or None where nothing can be had."""
    if url.startswith("pipe:"):
        return None  # a command line has no folder
    try:
        with webdataset.gopen(url) as file:
            return file.read() or None
    except (OSError, ValueError):
        return None


def _read_through(urls) -> tuple[Dataset, list[str]]:
    print(f"reading {len(urls)} streams once to count their samples (dataset.json and captions.txt would save that)")
    shards, captions, largest, sample = [], [], -1, None
    for url in urls:
        before = len(captions)
        for sample in read_stream(url):
            captions.append(" ".join((sample.caption or "").split()))
            if sample.class_ids is not None:
                largest = max(largest, int(sample.class_ids.max(initial=-1)))
        if len(captions) == before:
            raise UserError(f"{url}: holds no region samples (KEY.features.npy)")
        shards.append(Shard(url, len(captions) - before, 0))
    per_region = 0 if sample.class_ids is None else sample.class_ids.shape[1]
    counted = sum(map(bool, captions))
    return Dataset(shards, sample.features.shape[1], largest + 1, per_region, captions=counted), captions


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


def stream_ranges(member: np.ndarray, counts: np.ndarray, seed: int, epoch: int, begin: int, end: int):
    """Yields (shard, wanted rows) for positions `begin` to `end` of an epoch's sequence of samples.

    The sequence has the samples that `member` bool (sum of counts,) allows, shard after shard in shuffled order;
    rows are int64, ascending, within the shard.
    """
    counts = np.asarray(counts, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)])
    position = 0
    for shard in hashing.permutation(hashing.key(seed, epoch, 0), len(counts)).tolist():
        rows = np.flatnonzero(member[begins[shard] : begins[shard + 1]])
        part = rows[max(begin - position, 0) : max(end - position, 0)]
        position += len(rows)
        if len(part):
            yield shard, part


def stream_epoch(
    dataset: Dataset,
    seed: int,
    epoch: int,
    member: np.ndarray,
    begin: int,
    end: int,
    reader: int = 0,
    buffer: int = 1000,
) -> Iterator[tuple[int, Sample]]:
    """(sample number, sample) at positions `begin` to `end` of an epoch (see stream_ranges), shuffled in a buffer.

    reader: a number of its own for each reader, from which the shuffling is drawn.
    """
    begins = np.concatenate([[0], np.cumsum(dataset.counts)])
    random_key, drawn = hashing.key(seed, epoch, 2, reader), 0
    held: list[tuple[int, Sample]] = []
    for shard, rows in stream_ranges(member, dataset.counts, seed, epoch, begin, end):
        first, last = int(rows[0]), int(rows[-1]) + 1
        wanted = set(rows.tolist())
        for row, sample in zip(range(first, last), read_stream(dataset.shards[shard].path, first, last), strict=True):
            if row in wanted:
                held.append((int(begins[shard]) + row, sample))
            if len(held) > buffer:
                yield held.pop(_pick(random_key, drawn, len(held)))
                drawn += 1
    while held:
        yield held.pop(_pick(random_key, drawn, len(held)))
        drawn += 1


def _pick(random_key: int, counter: int, limit: int) -> int:
    return int(hashing.below(hashing.draw(np.array([random_key]), np.array([counter])), limit)[0])
