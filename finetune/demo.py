"""python -m finetune.demo --run RUN: a local web demo of a model."""

import socket
from dataclasses import dataclass

from finetune.config import ModelFlags
from finetune.inference.image_upload import Uploads
from finetune.inference.predictor import LazyPredictor
from finetune.pages.demo_backend import DemoBackend
from finetune.pages.demo_page import demo_page, serve
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.images.image_files import find_parts


@dataclass
class DemoConfig(ModelFlags):
    """Flags of finetune.demo."""

    images: str | None = flag(None, "folder of images that retrieval ranks", unset="validation images of the data")
    ranked: int = flag(24, "number of these images that are used, the first ones", low=2)
    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 allows access from other machines")
    port: int = flag(7860, "port to listen on", low=1, high=65535)
    megabytes: float = flag(10.0, "maximum size of an uploaded file, in MB", above=0)
    megapixels: float = flag(25.0, "maximum size of an uploaded image, in millions of pixels", above=0)
    seconds: float = flag(10.0, "maximum time to decode an uploaded image, in seconds", above=0)


def run(config: DemoConfig) -> None:
    try:
        socket.getaddrinfo(config.host, config.port)
    except (OSError, UnicodeError):  # UnicodeError: not a valid host name
        raise UserError(f"--host {config.host}: not a known host name or address") from None
    parts = find_parts(config.images, 1000, unique=False) if config.images else []
    files = [file for part in parts for file in part.files]
    if any(file.endswith(".tar") for file in files):
        raise UserError(f"--images {config.images}: should be a folder of image files")
    predictor = LazyPredictor(config)
    uploads = Uploads(config.megabytes, config.megapixels, config.seconds)
    page = demo_page(DemoBackend(predictor, uploads, files, config.ranked))
    _ = predictor.model, predictor.detector  # load them before the first request
    try:
        serve(page, config.host, config.port, config.megabytes)
    finally:
        uploads.close()


EXAMPLES = ("python -m finetune.demo --run runs/mt",)


if __name__ == "__main__":
    command(DemoConfig, run, "finetune.demo", "A local web demo of a model.", examples=EXAMPLES)
