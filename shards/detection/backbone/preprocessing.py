"""Preprocessing of images for a backbone: resizing with constant aspect ratio, normalisation, and padding."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, values from 0 to 1
SHORT_SIDE = 224
LONGEST = 2  # maximum long side of a resized image, in multiples of the short side of the network's input


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing parameters. A pixel value v becomes (v * rescale - mean) / std per channel.

    Attributes:
        short_side: pixels of the short side after resizing; if the long side would exceed LONGEST * short_side, it gets
            this size instead, so that the aspect ratio is constant and nothing is cropped.
        resample: of PIL.Image.Resampling.
        bgr: channels in the order blue, green, red.
    """

    short_side: int = SHORT_SIDE
    rescale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: int = Image.Resampling.BILINEAR
    bgr: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing."""
        scale = min(self.short_side / min(height, width), LONGEST * self.short_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def resized(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> uint8 (h, w, 3)."""
        height, width = self.size(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), self.resample))

    def normalised(self, image: np.ndarray, stride: int, device: torch.device) -> Tensor:
        """A resized image -> float32 (3, h, w) on the device, zero-padded right and bottom to multiples of stride."""
        x = torch.from_numpy(np.array(image[..., ::-1] if self.bgr else image)).to(device)
        x = x.permute(2, 0, 1).float() * self.rescale
        x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]
        height, width = x.shape[1:]
        return F.pad(x, (0, -width % stride, 0, -height % stride))


def settings_of(processor) -> dict:
    """The settings of an image processor of transformers, including steps that are None, which its to_dict omits."""
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order")
    return dict.fromkeys(steps) | processor.to_dict()


def of_processor(values: dict, default: Preprocessing) -> Preprocessing:
    """The preprocessing of a preprocessor_config.json; missing values are those of `default`.

    The short side is that of the network's input: `crop_size` if the processor crops, else `size`.
    """
    cropped = values.get("do_center_crop", "crop_size" in values) and values.get("crop_size")
    rescale = values.get("rescale_factor") or default.rescale
    rescale = rescale if values.get("do_rescale", True) else 1.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if values.get("do_normalize", True):
        mean = tuple(values.get("image_mean") or default.mean)
        std = tuple(values.get("image_std") or default.std)
    if values.get("rescale_offset"):  # EfficientNet: to -1 to 1 before the mean is subtracted
        mean = tuple(value + 1 for value in mean)
    if values.get("include_top") and values.get("do_normalize", True):  # EfficientNet: divided by std a second time
        std = tuple(value * value for value in std)
    return dataclasses.replace(
        default,
        short_side=_short_side(cropped or values.get("size")) or default.short_side,
        rescale=rescale,
        mean=mean,
        std=std,
        resample=default.resample if values.get("resample") is None else int(values["resample"]),
        bgr=bool(values.get("do_flip_channel_order")),
    )


def _short_side(size) -> int | None:
    """The short side of a processor's size: a number, or a dictionary of sides."""
    if not isinstance(size, dict):
        return size
    sides = [size.get(name) for name in ("shortest_edge", "height", "width")]
    return min((side for side in sides if side), default=None)
