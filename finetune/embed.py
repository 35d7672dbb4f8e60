"""python -m finetune.embed --run RUN --images DIR --texts FILE --out embeddings.npz: embeddings of images and texts."""

from dataclasses import dataclass, replace

import numpy as np

from finetune.config import ModelFlags
from finetune.inference.embedder import Embedder
from finetune.inference.embedding_files import arrays_of, image_embeddings, read_texts
from shards.common.cli import REQUIRED, command, flag
from shards.common.errors import UserError
from shards.common.files import whole_file


@dataclass
class EmbedConfig(ModelFlags):
    """Flags of finetune.embed."""

    out: str = flag(REQUIRED, "the .npz file to write", written=True)
    images: str | None = flag(None, "region shards, a folder of image files, or tars of images", unset="no images")
    texts: str | None = flag(None, "a text file, one text per line", unset="no texts")
    task: str | None = flag(None, "the task whose token precedes a text", unset="the first that the run was trained on")
    parts: bool = flag(False, "also store a vector for each token and each image row")
    batch_size: int = flag(64, "images or texts per forward pass", low=1)


def run(config: EmbedConfig) -> None:
    if not config.images and not config.texts:
        raise UserError("there is nothing to embed; give --images, --texts or both")
    if not config.out.endswith(".npz"):
        raise UserError(f"--out {config.out}: should end in .npz")
    embedder = Embedder(regions=config.regions, task=config.task, batch_size=config.batch_size, **config.of_weights)
    arrays: dict[str, np.ndarray] = {}
    if config.texts:
        texts = read_texts(config.texts)
        arrays |= {"texts": np.array(texts)} | arrays_of("text", [embedder.texts(texts)], config.parts)
    if config.images:
        ids, found = [], []
        for names, embeddings in image_embeddings(embedder, config.images):
            ids += names
            found.append(embeddings if config.parts else replace(embeddings, parts=[]))
        arrays |= {"image_ids": np.array(ids)} | arrays_of("image", found, config.parts)
    with whole_file(config.out) as file:
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
    space = "texts and images share one space" if embedder.comparable else "texts and images have separate spaces"
    print(f"{config.out}: {shapes}; {space}")


EXAMPLES = ("python -m finetune.embed --run runs/mt --images photos/ --out photos.npz",)


if __name__ == "__main__":
    command(EmbedConfig, run, "finetune.embed", "Embeddings of images and texts.", examples=EXAMPLES)
