"""Uploaded images of the demo: decoded in a separate process, with limits on file size, pixels and time."""

import concurrent.futures
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from shards.common.errors import UserError
from shards.common.process_pool import WorkerPool, begin_worker
from shards.images.image_files import BadImage, decode_image

LONG_SIDE = 1600  # pixels; larger images are downscaled, which bounds the cost of all later steps


class Uploads:
    """Reads image files within limits.

    The decoding process is started for the first image, and again after an image that exceeds the time limit or
    crashes it.

    Args:
        megabytes: maximum size of a file.
        pixels: maximum size of an image, in millions of pixels.
        seconds: maximum time to decode an image.
    """

    def __init__(self, megabytes: float, pixels: float, seconds: float):
        self.megabytes, self.pixels, self.seconds = megabytes, pixels, seconds
        self._pool = None

    def read(self, path) -> tuple[np.ndarray, float]:
        """(uint8 RGB (H, W, 3), at most LONG_SIDE pixels; scale, the ratio of its width to the file's)."""
        name = Path(path).name
        size = Path(path).stat().st_size / 1e6
        if size > self.megabytes:
            raise UserError(f"{name}: {size:.1f} MB exceed the limit of {self.megabytes:g} MB")
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = WorkerPool(1, mp_context=context, initializer=begin_worker)
        try:
            return self._pool.submit(_decode, str(path), round(self.pixels * 1e6)).result(self.seconds)
        except BadImage as error:
            raise UserError(f"{name}: {error}") from None
        except concurrent.futures.TimeoutError:
            self._stop()
            raise UserError(f"{name}: took longer than {self.seconds:g} s to decode") from None
        except BrokenProcessPool:
            self._stop()
            raise UserError(f"{name}: cannot be decoded (the decoding process was killed)") from None

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        if self._pool is not None:
            self._stop()


def _decode(path: str, pixels: int) -> tuple[np.ndarray, float]:
    image = Image.fromarray(decode_image(Path(path).read_bytes(), pixels))
    width = image.width
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    return np.asarray(image), image.width / width
