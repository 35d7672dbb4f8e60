"""Scores of a long ranking on disk, so that an interrupted evaluation continues where it was.

Every rank appends the scores of a block of images to a file of its own when the block is complete:
FOLDER/.NAME.rank-N.part. The first line describes what was ranked, as JSON (see `ranked`). Each record is the number of
the block, the length and the CRC-32 of its scores, and the scores. If a record was cut off or damaged, it and all after
it in the file are ignored; so are files of another model, split, or set of regions. The number of ranks may change.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from finetune.data.task_collate import TaskCollator
from finetune.objective.task_pass import TaskPass
from pretrain.engine.distributed import on_first
from shards.common.dist_info import Ranks
from shards.storage.dataset import fingerprint

_RECORD = struct.Struct("<qqI")  # number of the block, bytes of its scores, their CRC-32


class KeptScores:
    """The complete blocks of a ranking.

    Attributes:
        done: numbers of the blocks whose scores are in files that the first rank sees; equal on all ranks.

    Args:
        place: path of the file that the evaluation will write; the scores are kept next to it.
        task_pass, collator, batch_size: see caption_image_scores.retrieval_scores.
        ranks: the processes, all of which have to call this.
    """

    def __init__(self, place: Path, task_pass: TaskPass, collator: TaskCollator, batch_size: int, ranks: Ranks):
        self.place, self.ranks = place, ranks
        self._found: dict[int, np.ndarray] = {}  # on the first rank: block -> scores, in mapped files
        self._file: BinaryIO | None = None

        def search() -> tuple[bytes, list[int]]:
            header = json.dumps(ranked(task_pass, collator, batch_size)).encode() + b"\n"
            for path in self._paths():
                with contextlib.suppress(OSError, ValueError):  # removed meanwhile; empty
                    self._found |= _records(np.memmap(path, np.uint8, "r"), header)[0]
            return header, sorted(self._found)

        self._header, self.done = on_first(ranks, search)

    def fill(self, scores: np.ndarray, blocks: Sequence[np.ndarray]) -> None:
        """Copies the scores of the blocks in `done`, on the first rank.

        Args:
            scores: float64 (captions, images).
            blocks: int (n,), the images of each block.
        """
        for number, found in self._found.items():
            scores[:, blocks[number]] = found.reshape(len(scores), -1)
        self._found.clear()

    def add(self, number: int, scores: np.ndarray) -> None:
        """Appends the scores of a block, float64 (captions, n). Without a place to write them, nothing is kept."""
        with contextlib.suppress(OSError):  # no permission, or a full disk
            if self._file is None:
                self._file = self._opened()
            data = np.ascontiguousarray(scores).tobytes()
            self._file.write(_RECORD.pack(number, len(data), zlib.crc32(data)) + data)
            self._file.flush()

    def close(self) -> None:
        """Closes this rank's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Removes the files of all ranks, when the result has been written."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.place.parent.glob(f".{self.place.name}.rank-*.part"))

    def _opened(self) -> BinaryIO:
        """This rank's file, after its complete records. OSError if another evaluation is writing to it."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        path = self.place.with_name(f".{self.place.name}.rank-{self.ranks.rank}.part")
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        end = _records(np.memmap(path, np.uint8, "r"), self._header)[1] if path.stat().st_size else 0
        file.truncate(end)
        file.seek(end)
        if not end:
            file.write(self._header)
        return file


def ranked(task_pass: TaskPass, collator: TaskCollator, batch_size: int) -> dict[str, Any]:
    """What the scores depend on."""
    weights, model = hashlib.sha256(), task_pass.model  # heads of other tasks may be random
    for part in (model.encoder, model.heads[task_pass.task.head.layer_name]):
        for tensor in part.state_dict().values():
            weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return {
        "weights": weights.hexdigest(),
        "examples": collator.examples.digest(),
        "regions": fingerprint(collator.regions.dataset),
        "tokenizer": hashlib.sha256(collator.tokenizer.backend.to_str().encode()).hexdigest(),
        "limits": repr(collator.limits),
        "task": [task_pass.task.name, task_pass.task_token],
        "precision": [repr(task_pass.precision.dtype), task_pass.device.type, torch.__version__],
        "batch_size": batch_size,
    }


def _records(data: np.ndarray, header: bytes) -> tuple[dict[int, np.ndarray], int]:
    """(the scores of each block, the end of the last complete record); nothing and 0 for a file with another header."""
    if data[: len(header)].tobytes() != header:
        return {}, 0
    found, end = {}, len(header)
    for number, scores in _complete(data, end):
        found[number] = scores.view(np.float64)
        end += _RECORD.size + len(scores)
    return found, end


def _complete(data: np.ndarray, begin: int) -> Iterator[tuple[int, np.ndarray]]:
    while begin + _RECORD.size <= len(data):
        number, size, crc = _RECORD.unpack_from(data, begin)
        scores = data[begin + _RECORD.size : begin + _RECORD.size + size]
        if size <= 0 or len(scores) != size or zlib.crc32(scores) != crc:
            return
        yield number, scores
        begin += _RECORD.size + size
