"""Image ids: one definition for extraction, captions, given boxes, conversion, tasks and decontamination."""

import re

SUFFIXES = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "bmp", "gif", "tif", "tiff")
# Suffixes of image formats that are not read; such files are counted.
OTHER_FORMATS = {"heic", "heif", "jp2", "jxl", "pbm", "pgm", "ppm", "tga", "psd", "svg"}
OTHER_FORMATS |= {"dng", "cr2", "nef", "arw", "exr"}
_SUFFIX = re.compile(rf"\.(?:{'|'.join(SUFFIXES)})$", re.IGNORECASE)
# COCO's file names since 2017 (000000000042) and before (COCO_val2014_000000000042); annotations have the number only.
_COCO = re.compile(r"(?:COCO_[a-z0-9]+_)?(?=\d{12}$)0*(\d+)$")
# Flickr8k's file names (1000268201_693b08cb0e); Flickr30k, its Entities and SNLI-VE have the first number only.
_FLICKR8K = re.compile(r"(\d+)_[0-9a-f]{10}$")
SAME_ID = (
    "duplicate image id {image} (an image id is the file name without folder and suffix, for COCO the number); remove "
    "or rename one of them, or use their folders separately"
)
NOT_UTF8 = "has a name that is not UTF-8; rename it"


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return _SUFFIX.search(name) is not None


def unread_format(name: str) -> str | None:
    """The suffix of an image format that is not read (OTHER_FORMATS); "" for a name without a suffix; else None."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    if not stem or not dot:
        return ""
    return suffix.lower() if suffix.lower() in OTHER_FORMATS else None


def image_id(name: str) -> str:
    """The id of an image, as used in annotations, from its path, its file name or an id.

    It is the last part of the path without the image suffix, and for file names of COCO and Flickr8k the number:
    VG_100K_2/2.jpg, ./2.jpg and 2 have the id 2; val2014/COCO_val2014_000000000042.jpg has 42; a.b is unchanged.
    """
    stem = _SUFFIX.sub("", name.rpartition("/")[2])
    found = _COCO.match(stem) or _FLICKR8K.match(stem)
    return found[1] if found else stem
