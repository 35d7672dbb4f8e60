"""Sequential reading of shards that cannot be memory-mapped: http, pipes, object stores.

Every reader (a data worker) gets a range of positions in an epoch's sequence of samples and opens only the shards of
this range. Ranges are independent of the number and sizes of the shards, so that one shard can have eight readers. No
sample is read twice, except one with several captions in two ranges.
"""

import re
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import webdataset

from shards.common import counter_rng
from shards.common.counted import counted
from shards.common.errors import BadSample, UserError
from shards.common.files import expand, is_stray
from shards.common.random_purposes import EpochPurpose
from shards.common.untrusted_input import parse_json
from shards.storage.dataset import Dataset, Shard, checked, described_dataset, is_readable, normalised
from shards.storage.epoch_order import PairNumbers
from shards.storage.index import split_name, tar_entries, tar_errors
from shards.storage.sample import Sample, decode
from shards.storage.text_lists import TextLists

RETRY_AFTER = (0.5, 1, 2, 4, 8)  # seconds before each retry of a broken stream
CURL = {6: "unknown host", 7: "no connection", 22: "HTTP error"}  # exit statuses of curl
BUFFER = 1000


def open_stream(pattern: str) -> tuple[Dataset, TextLists]:
    """Opens a data set given by URLs of webdataset; returns it and the captions of every sample in order.

    dataset.json and captions.txt are read from the folder of the first URL. If one is missing, the streams are read
    once to count samples and collect captions.
    """
    urls = expand(pattern)
    folder = urls[0].rpartition("/")[0]
    piped = urls[0].startswith("pipe:")  # a command line has no folder
    value, lines = (None if piped else _read(f"{folder}/{name}") for name in ("dataset.json", "captions.txt"))
    try:
        value = parse_json(value or b"null")
        if not is_readable(value) or lines is None:
            return _read_through(urls)
        shards = {shard["path"]: checked(Shard(**shard)) for shard in value.pop("shards")}
        described = described_dataset(list(shards.values()), value)
        texts = TextLists.of_lines(np.frombuffer(lines, np.uint8), described.has_several_captions)
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{folder}: dataset.json or captions.txt cannot be read; remove or replace it") from None
    if len(texts) != sum(shard.samples for shard in shards.values()):
        raise UserError(f"{folder}/captions.txt: does not have one line per sample of dataset.json; remove it")
    places, captions, begin = {}, [], 0
    for name, shard in shards.items():
        places[name] = begin, begin + shard.samples
        begin += shard.samples
    for url in urls:
        name = url.rpartition("/")[2]
        if name not in shards:
            raise UserError(f"{url}: is not in {folder}/dataset.json; remove that file to scan the streams")
        captions.append(texts.part(*places[name]))
    chosen = [replace(shards[url.rpartition("/")[2]], path=url) for url in urls]
    return replace(described, shards=chosen), TextLists.joined(captions)


def _read(url: str) -> bytes | None:
    """The content of a URL, or None if it cannot be read."""
    try:
        with _open(url) as file:
            return file.read() or None
    except OSError:
        return None


def _open(url: str):
    try:
        return webdataset.gopen(url)
    except ValueError:
        raise UserError(
            f"{url}: webdataset does not support {url.partition(':')[0]}: URLs; use a command that writes a shard to "
            "stdout, as in --data 'pipe:aws s3 cp s3://bucket/regions-{00000..00331}.tar -'"
        ) from None
    except FileNotFoundError as error:
        raise UserError(f"{url}: needs the program {error.filename}, which is not installed") from None


def _read_through(urls) -> tuple[Dataset, TextLists]:
    print(f"reading {len(urls)} streams once to count samples (not needed with dataset.json and captions.txt)")
    shards, captions, largest, sample = [], [], -1, None
    for url in urls:
        texts = []
        for sample in read_stream(url):
            texts.append(normalised(sample.captions))
            if sample.class_ids is not None:
                largest = max(largest, int(sample.class_ids.max(initial=-1)))
        if not texts:
            raise UserError(f"{url}: contains no region samples (KEY.features.npy); make shards with shards.extract")
        shards.append(Shard(url, len(texts), 0))
        captions.append(TextLists.of(texts))
    per_region = 0 if sample.class_ids is None else sample.class_ids.shape[1]
    dataset = Dataset(shards, sample.features.shape[1], largest + 1, per_region)
    for part in captions:
        dataset.captions += sum(map(len, part))
        dataset.captioned += sum(map(bool, part))
    return dataset, TextLists.joined(captions)


def read_stream(url: str, begin: int = 0, end: int | None = None) -> Iterator[Sample]:
    """Yields samples `begin` to `end` of one tar in order, and stops reading at `end`.

    A broken stream is reopened after RETRY_AFTER seconds and continued at the next sample.

    Raises:
        UserError: all retries failed, or the stream ends before `end`.
    """
    number, failures = begin, 0
    while True:
        try:
            for sample in _read_once(url, number, end):
                yield sample
                number, failures = number + 1, 0
            break
        except (tarfile.TarError, OSError) as error:
            if failures == len(RETRY_AFTER):
                raise UserError(_broken(url, number, error)) from None
            wait = RETRY_AFTER[failures]
            print(f"{_broken(url, number, error)}; retrying in {wait} s", file=sys.stderr, flush=True)
            time.sleep(wait)
            failures += 1
    if end is not None and number < end:
        raise UserError(
            f"{url}: ends after {counted(number, 'sample')}, expected at least {end}; fetch or make it again"
        )


def _broken(url: str, number: int, error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, tarfile.TarError):
        return f"{url}: cannot be read ({_reason(url, error)})"
    return f"{url}: the tar is truncated or damaged after {counted(number, 'sample')} ({error})"


def _reason(url: str, error: OSError) -> str:
    """A short description of webdataset's error: the exit status of the program that reads the URL."""
    ended = re.search(r"exit (-?\d+) \(read\)", str(error))
    if ended is None:
        return error.strerror or str(error)
    meaning = "" if url.startswith("pipe:") else CURL.get(int(ended[1]), "")
    return f"the program that reads it ended with status {ended[1]}{meaning and f', {meaning}'}"


def _read_once(url: str, begin: int, end: int | None) -> Iterator[Sample]:
    with tar_errors(), _open(url) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for number, (key, members) in enumerate(_group(tar, begin, url)):
            if end is not None and number >= end:
                return
            if number >= begin:
                yield decode(key, members, url)


def _group(tar, begin: int, url: str):
    """Yields (key, member suffix -> bytes) of each sample; members of samples before `begin` are not read.

    Raises:
        UserError: members of a sample are not adjacent, which a stream does not support.
    """
    key, members, number, ended = None, {}, 0, set()
    for entry in tar_entries(tar):
        entry_key, suffix = split_name(entry.name)
        if not entry.isfile() or not suffix or is_stray(entry.name):
            continue
        if entry_key != key:
            if entry_key in ended:
                raise UserError(
                    f"{url}: {entry.name} is not adjacent to the other members of {entry_key}; "
                    "make the tar again with members in order (tar --sort=name), or read it from a local path"
                )
            ended.add(key)
            if "features.npy" in members:
                yield key, members
                number += 1
            key, members = entry_key, {}
        members[suffix] = tar.extractfile(entry).read() if number >= begin else b""
    if "features.npy" in members:
        yield key, members


def stream_ranges(member: np.ndarray, counts: np.ndarray, seed: int, epoch: int, begin: int, end: int):
    """Yields (shard, rows) for positions `begin` to `end` of an epoch's sequence of pairs.

    The sequence consists of the pairs in `member`, shard after shard in shuffled order.

    Args:
        member: bool (sum of counts,), the pairs of the epoch.
        counts: pairs per shard.

    Yields:
        Shard number, and int64 pair numbers within the shard, ascending.
    """
    counts = np.asarray(counts, np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)])
    position = 0
    random_key = counter_rng.key(seed, epoch, EpochPurpose.SHARD_ORDER)
    for shard in counter_rng.permutation(random_key, len(counts)).tolist():
        rows = np.flatnonzero(member[begins[shard] : begins[shard + 1]])
        part = rows[max(begin - position, 0) : max(end - position, 0)]
        position += len(rows)
        if len(part):
            yield shard, part


@dataclass(frozen=True)
class Stretch:
    """One reader's share of an epoch: positions `begin` to `end` of the sequence of pairs.

    Attributes:
        member: see stream_ranges.
        reader: unique number of the reader, which seeds the shuffling.
        buffer: size of the shuffle buffer, in samples.
        pairs: pair numbers, if samples have several pairs.
    """

    dataset: Dataset
    seed: int
    epoch: int
    member: np.ndarray
    begin: int
    end: int
    reader: int = 0
    buffer: int = BUFFER
    pairs: PairNumbers | None = None

    def numbers(self) -> Iterator[int]:
        """The pair numbers in the order of `samples`, without reading."""
        begins = self._numbers.begins_of_shards
        return self._shuffled(int(begins[shard]) + row for shard, rows in self._ranges() for row in rows.tolist())

    def samples(self, opened=lambda shard: None) -> Iterator[tuple[int, Sample | UserError]]:
        """Yields (pair number, sample), shuffled in a buffer, with the error in place of an unreadable sample.

        opened: called with the number of every shard before it is read.
        """
        return self._shuffled(self._read(opened))

    @property
    def _numbers(self) -> PairNumbers:
        return self.pairs or PairNumbers(self.dataset.counts)

    def _ranges(self):
        return stream_ranges(self.member, self._numbers.per_shard, self.seed, self.epoch, self.begin, self.end)

    def _read(self, opened):
        pairs = self._numbers
        for shard, rows in self._ranges():
            opened(shard)
            numbers = pairs.begins_of_shards[shard] + rows
            samples, counts = np.unique(pairs.samples_of(numbers) - pairs.first_samples[shard], return_counts=True)
            waiting = iter(numbers.tolist())
            read = self._read_rows(self.dataset.shards[shard].path, samples.tolist())
            for (_, sample), count in zip(read, counts.tolist(), strict=True):
                yield from ((number, sample) for number in islice(waiting, count))

    def _read_rows(self, url: str, rows: list[int]):
        """Yields rows of one shard; an error in place of an invalid sample, or of all others if the stream fails."""
        done = 0
        while done < len(rows):
            try:
                stream = enumerate(read_stream(url, rows[done], rows[-1] + 1), rows[done])
                for row in rows[done:]:
                    yield row, next(sample for number, sample in stream if number == row)
                    done += 1
            except BadSample as error:
                yield rows[done], error
                done += 1
            except UserError as error:
                yield from ((row, error) for row in rows[done:])
                return

    def _shuffled(self, items: Iterable) -> Iterator:
        """Shuffles items in a buffer; the permutation does not depend on the items.

        The buffer holds the pairs of `buffer` samples, so that mixing does not depend on the number of captions.
        """
        random_key, drawn = counter_rng.key(self.seed, self.epoch, EpochPurpose.STREAM_BUFFER, self.reader), 0
        buffer = self.buffer * len(self._numbers) // max(1, len(self.dataset))
        held: list = []
        for item in items:
            held.append(item)
            if len(held) > buffer:
                yield held.pop(_pick(random_key, drawn, len(held)))
                drawn += 1
        while held:
            yield held.pop(_pick(random_key, drawn, len(held)))
            drawn += 1


def _pick(random_key: int, counter: int, limit: int) -> int:
    return int(counter_rng.below(counter_rng.draw(np.array([random_key]), np.array([counter])), limit)[0])
