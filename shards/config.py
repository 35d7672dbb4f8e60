"""The flags of shards.extract and shards.convert, which others take too."""

import os
from dataclasses import dataclass

from shards.common.cli import REQUIRED, flag


@dataclass
class ExtractConfig:
    """Flags of shards.extract."""

    images: str = flag(
        REQUIRED, "folder of images, or tars in the layout of img2dataset (pattern)", first=True, group="images"
    )
    out: str = flag(REQUIRED, "output folder for the shards", written=True)
    captions: str | None = flag(
        None,
        "captions: a Karpathy file (.json), or rows of image and caption (.jsonl, TSV)",
        unset="those next to the images",
    )
    captions_split: str | None = flag(
        None, "comma-separated splits of the Karpathy file to read (train, val, test)", unset="all"
    )
    boxes: str | None = flag(
        None, "file of given boxes to compute features for, instead of detecting regions", unset="none"
    )
    exclude: str | None = flag(
        None,
        "file with the ids of images to exclude, one per line, or an output folder of finetune.clean",
        unset="none",
    )
    per_shard: int = flag(1000, "images per shard, if the input is a folder", low=1)
    detector: str = flag(
        "pixels",
        "pixels, x152, backbone, or an object-detection model of transformers (directory or hub name)",
        group="regions",
    )
    weights: str | None = flag(
        None,
        "weights: for x152 the published detectron_model.pth; for backbone a vision model of transformers (directory "
        "or hub name) or a state dict of torchvision or timm, or several with commas between them",
        unset="none",
    )
    detector_config: str | None = flag(None, "JSON file of the sizes of x152", unset="the published ones")
    class_names: str | None = flag(
        None, "file with the names of the detector's classes, one per line", unset="those of the detector, if any"
    )
    max_regions: int | None = flag(
        None,
        "maximum number of regions per image",
        unset="36, 100 for x152",
        low=1,
        high=1000,
        formerly="regions",
    )
    proposals: str | None = flag(
        None,
        "region proposals of the detector backbone",
        unset="pixels: those of the detector pixels",
        choices=("pixels", "grid"),
    )
    grid: int | None = flag(None, "rows and columns of --proposals grid", unset="6", low=1, high=100)
    short_side: int | None = flag(
        None, "short side in pixels to which the detector backbone resizes images", unset="its input size", low=32
    )
    visual_words: int = flag(
        256,
        "number of visual words, the classes of the detector pixels",
        low=1,
        high=32767,
        formerly="words",
    )
    visual_words_file: str | None = flag(
        None,
        "visual_words.npz of an earlier extraction, to use the same visual words",
        unset="visual words are fitted",
        formerly="words_file",
    )
    seed: int = flag(0, "random seed for fitting the visual words of the detector pixels")
    batch_size: int = flag(8, "images per batch, for neural detectors", low=1, group="speed and memory")
    precision: str = flag("float32", "precision of neural detectors", choices=("float32", "bf16", "fp16"))
    device: str = flag("auto", "device; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    processes: int = flag(os.cpu_count() or 1, "worker processes", low=1)

    @property
    def regions(self) -> int | None:
        """The former name of max_regions, for detectors of other packages."""
        return self.max_regions


@dataclass
class ConvertConfig:
    """Flags of shards.convert."""

    source: tuple[str, ...] = flag(
        REQUIRED, "features: .tsv files (.tsv.0, .tsv.gz) or a folder of them, an LMDB, or a folder of .npy", first=True
    )
    out: str = flag(REQUIRED, "output folder for the shards", written=True)
    per_shard: int = flag(1000, "images per shard", low=1)
    on_bad_row: str = flag("stop", "action for an invalid image", choices=("stop", "skip"))
    processes: int = flag(os.cpu_count() or 1, "worker processes", low=1)
