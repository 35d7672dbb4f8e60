"""Images that strangers send: decoded in a process of their own, within limits of bytes, pixels and time."""

import concurrent.futures
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from shards.errors import UserError
from shards.images import BadImage, decode_image
from shards.jobs import begin_worker

LONG_SIDE = 1600  # pixels; larger images are made smaller, so that everything after this is bounded too


class Uploads:
    """Reads image files within limits. megabytes: of a file; pixels: of an image, in millions; seconds: of decoding.

    The process that decodes is started with the first image, and anew after one that took too long or took it down.
    """

    def __init__(self, megabytes: float, pixels: float, seconds: float):
        self.megabytes, self.pixels, self.seconds = megabytes, pixels, seconds
        self._pool = None

    def read(self, path) -> tuple[np.ndarray, float]:
        """(uint8 RGB (H, W, 3), LONG_SIDE at the most; how many of its pixels are one of the file's)."""
        name = Path(path).name
        size = Path(path).stat().st_size / 1e6
        if size > self.megabytes:
            raise UserError(f"{name}: has {size:.1f} MB, more than the {self.megabytes:g} that are taken")
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=begin_worker)
        try:
            return self._pool.submit(_decode, str(path), round(self.pixels * 1e6)).result(self.seconds)
        except BadImage as error:
            raise UserError(f"{name}: {error}") from None
        except concurrent.futures.TimeoutError:
            self._stop()
            raise UserError(f"{name}: took longer than {self.seconds:g} s to decode") from None
        except BrokenProcessPool:
            self._stop()
            raise UserError(f"{name}: cannot be decoded (the process that tried was killed)") from None

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
