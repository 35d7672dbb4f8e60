"""Image ids: one definition for extraction, captions, given boxes, conversion, tasks and decontamination."""

import re
import unicodedata
from urllib.parse import unquote

from shards.common.files import printable

SUFFIXES = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "bmp", "gif", "tif", "tiff")
# Suffixes of image formats that are not read; such files are counted.
OTHER_FORMATS = {"heic", "heif", "jp2", "jxl", "pbm", "pgm", "ppm", "tga", "psd", "svg"}
OTHER_FORMATS |= {"dng", "cr2", "nef", "arw", "exr"}
_SUFFIX = re.compile(rf"\.(?:{'|'.join(SUFFIXES)})$", re.IGNORECASE)
# COCO's file names since 2017 (000000000042) and before (COCO_val2014_000000000042); annotations have the number only.
_COCO = re.compile(r"(?:COCO_[a-z0-9]+_)?(?=\d{12}$)0*(\d+)$")
SHORTEST_CHANGED = 12  # characters of the shortest letters and digits that are not an id: COCO's file names
# Flickr8k's file names (1000268201_693b08cb0e); Flickr30k, its Entities and SNLI-VE have the first number only.
_FLICKR8K = re.compile(r"(\d+)_[0-9a-f]{10}$")
# Names and URLs of photos of data sets, without the image suffix, by collection.
_PHOTO_NAMES = (
    ("coco", re.compile(r"(?:^|/)COCO_[a-z0-9]+_0*(\d+)$")),
    ("coco", re.compile(r"(?:^|/)(?:train|val|test)20\d\d/0{6}0*(\d+)$")),
    ("genome", re.compile(r"(?:^|/)VG_100K(?:_2)?/(\d+)$")),
    ("genome", re.compile(r"(?:^|/)v7w_(\d+)$")),
    ("nlvr2", re.compile(r"(?:^|/)((?:train|dev|test1|test2)-\d+-\d+-img[01])$")),
    ("flickr", re.compile(r"(?:^|/)(\d+)_[0-9a-f]{10}(?:_[a-z0-9]{1,2})?$")),
    ("flickr", re.compile(r"\bstatic\.?flickr\.com/(?:\w+/)*(\d+)_[0-9a-f]+(?:_[a-z0-9]{1,2})?$")),
    ("flickr", re.compile(r"\bflickr\.com/photos/[^/]+/(\d+)(?:/|$)")),
    ("flickr", re.compile(r"(?:^|/)flickr(?:30|8)k[^/]*/(?:[^/]+/)*([1-9]\d*)$", re.IGNORECASE)),
)
_URL = re.compile(r"\w+://[^?#&]+")  # without parameters
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


def _with_slashes(path: str) -> str:
    return path.replace("\\", "/")


def composed(text: str) -> str:
    """The text in Unicode's form NFC, in which a letter and its accent are one character.

    Annotations have this form; macOS decomposes the names of files.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def image_id(name: str) -> str:
    """The id of an image, as used in annotations, from its path, its file name or an id.

    It is the last part of the path without the image suffix, and for file names of COCO and Flickr8k the number:
    VG_100K_2/2.jpg, ./2.jpg and 2 have the id 2; val2014/COCO_val2014_000000000042.jpg has 42; a.b is unchanged. The
    backslashes of Windows paths separate folders too. Letters with accents are composed (NFC).
    """
    if len(name) < SHORTEST_CHANGED and name.isascii() and name.isalnum():  # most ids; data sets have up to a million
        return name
    stem = composed(_SUFFIX.sub("", _with_slashes(name).rpartition("/")[2]))
    found = _COCO.match(stem) or _FLICKR8K.match(stem)
    return found[1] if found else stem


def printable_id(name: str) -> str:
    """The id of an image from a file name that may contain bytes that are not UTF-8 (see files.printable)."""
    return printable(image_id(name))


def photo_names(place: str) -> list[str]:
    """The names (COLLECTION:ID) of a photo that its path, file name or URL states without doubt.

    val2014/COCO_val2014_000000000042.jpg is coco:42, VG_100K_2/7.jpg genome:7, and
    https://live.staticflickr.com/65535/1234567_0a1b2c3d4e_b.jpg?x=1 flickr:1234567, also as a parameter of the URL of a
    proxy. A number alone (42.jpg) has no name, because every collection, and every crawl that numbers its images, has
    one.
    """
    if "://" in place:
        places = [re.split(r"[?#](?=[^/]*$)", place)[0], *_URL.findall(unquote(place))]
    else:
        places = [_with_slashes(place)]
    stems = [_SUFFIX.sub("", each) for each in places]
    found = (f"{of}:{match[1]}" for stem in stems for of, form in _PHOTO_NAMES if (match := form.search(stem)))
    return list(dict.fromkeys(found))
