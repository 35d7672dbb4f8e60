"""python -m finetune.embed --run RUN --images DIR --texts FILE --out embeddings.npz: embeddings of images and texts."""

from dataclasses import dataclass
from importlib.util import find_spec

from finetune.config import ModelFlags
from finetune.inference.embedder import Embedder
from finetune.inference.embedding_files import embed_all, embed_images, embed_retrieval, read_texts, write_arrays
from finetune.pages.embedding_page import Thumbnails, write_plane
from finetune.run_dirs.run_data_folder import choose_data
from finetune.tasks import find_task
from shards.common.cli import command, flag
from shards.common.errors import UserError


@dataclass
class EmbedConfig(ModelFlags):
    """Flags of finetune.embed."""

    out: str | None = flag(None, "the file to write, .npz or .parquet", unset="none", written=True)
    page: str | None = flag(None, "HTML file that shows the embeddings in a plane", unset="none", written=True)
    images: str | None = flag(None, "region shards, a folder of image files, or tars of images", unset="no images")
    texts: str | None = flag(None, "a text file, one text per line", unset="no texts")
    captions: bool = flag(False, "embed the captions that are stored with the images")
    retrieval: str | None = flag(None, "retrieval task, for the images and captions of its validation", unset="none")
    task: str | None = flag(None, "the task whose token precedes a text", unset="the first that the run was trained on")
    parts: bool = flag(False, "also store a vector for each token and each image row")
    batch_size: int = flag(64, "images or texts per forward pass", low=1)
    shown: int = flag(300, "images on the page, and texts without an image: the first ones", low=1)


def run(config: EmbedConfig) -> None:
    check(config)
    embedder = Embedder(task=config.task, batch_size=config.batch_size, **config.of_model)
    thumbnails = Thumbnails(config.shown if config.page else 0)
    if config.retrieval:
        images = embed_retrieval(embedder, find_task(config.retrieval), choose_data(config.run, config.data))
    else:
        images = embed_images(embedder, config.images) if config.images else iter(())
    texts = read_texts(config.texts) if config.texts else []
    captions = config.captions or config.retrieval is not None
    arrays = embed_all(embedder, thumbnails.of(images), texts, captions, config.parts)
    space = "texts and images share one space" if embedder.comparable else "texts and images have separate spaces"
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
    if config.out:
        write_arrays(config.out, arrays)
    print(f"{config.out or 'embeddings'}: {shapes}; {space}")
    if config.page:
        write_plane(
            config.page, f"Embeddings of {config.run}", arrays, thumbnails.pictures, embedder.comparable, config.shown
        )
        print(f"page: {config.page}")


def check(config: EmbedConfig) -> None:
    """Raises UserError for flags that exclude each other, and if there is nothing to embed or to write."""
    sources = {name: getattr(config, name) for name in ("images", "texts", "captions") if getattr(config, name)}
    if config.retrieval and sources:
        name, value = next(iter(sources.items()))
        raise UserError(f"--{name} {value}: cannot be combined with --retrieval, which has its own images and captions")
    if config.captions and (config.texts or not config.images):
        raise UserError(f"--captions true: {'replaces --texts' if config.texts else 'needs --images'}")
    if config.retrieval and not find_task(config.retrieval).head.ranks_images:
        raise UserError(f"--retrieval {config.retrieval}: is not a retrieval task, such as flickr_retrieval")
    if not (sources or config.retrieval):
        raise UserError("there is nothing to embed; give --images, --texts or both, or --retrieval")
    if not (config.out or config.page):
        raise UserError("there is nothing to write; give --out, --page or both")
    if config.out and not config.out.endswith((".npz", ".parquet")):
        raise UserError(f"--out {config.out}: should end in .npz or .parquet")
    if config.out and config.out.endswith(".parquet") and find_spec("pyarrow") is None:
        raise UserError(f"--out {config.out}: needs pyarrow; pip install pyarrow, or write .npz")


EXAMPLES = ("python -m finetune.embed --run runs/mt --images photos/ --out photos.npz",)


if __name__ == "__main__":
    command(EmbedConfig, run, "finetune.embed", "Embeddings of images and texts.", examples=EXAMPLES)
