"""Detectors by name: every module in this folder defines a DETECTOR; other names are models of transformers.

Other packages add detectors by entry points (shards.common.plugins).
"""

import importlib
import os
import pkgutil
import shutil
from pathlib import Path

from shards.common.cli import current_flags
from shards.common.errors import UserError
from shards.common.files import read_json, split_paths, write_json
from shards.common.model_hub import HUB_NAME
from shards.common.plugins import load_plugin, package_of, plugins
from shards.common.untrusted_input import check_fields
from shards.config import ExtractConfig
from shards.detection.base import Detector
from shards.storage.dataset import UNFINISHED, plan_of

OF_TRANSFORMERS = "transformers_model"  # module for all other names
SIZES = "detector_config.json"  # sizes of the detector x152, in a folder of keep_detector


def make_detector(config) -> Detector:
    """Builds the detector given by the flags of shards.extract, before `fit` or `load`."""
    detector = config.detector
    if detector not in _names() and not os.path.isdir(detector) and not HUB_NAME.fullmatch(detector):
        known = ", ".join(sorted(_names() - {OF_TRANSFORMERS}))
        raise UserError(
            f"--detector {detector}: should be one of {known}, or an object-detection model of transformers, given by "
            "a directory or a hub name (OWNER/NAME)"
        )
    return _detector_class(detector)(config)


def _detector_class(detector: str) -> type[Detector]:
    if detector in plugins("detectors"):
        return load_plugin(plugins("detectors")[detector])
    name = detector if detector in _names() else OF_TRANSFORMERS
    return importlib.import_module(f"{__name__}.{name}").DETECTOR


def _names() -> set[str]:
    own = {module.name for module in pkgutil.iter_modules(__path__)}
    if both := own & plugins("detectors").keys():
        package = package_of(plugins("detectors")[min(both)])
        raise UserError(
            f"package {package}: there is already a detector {min(both)}; rename it or uninstall the package"
        )
    return own | plugins("detectors").keys()


def absolute_path(value: str | None) -> str | None:
    """The absolute path of a detector or its files, if it exists; hub names and names of detectors are unchanged.

    value: also several with commas between them, as --weights accepts them.
    """
    if not value or value in _names():
        return value
    return ",".join(os.path.abspath(part) if os.path.exists(part) else part for part in split_paths(value))


# Flags of shards.extract that determine the regions of an image.
SETTINGS = (
    *("detector", "weights", "detector_config", "class_names", "precision", "max_regions", "visual_words", "seed"),
    *("proposals", "grid", "short_side"),
)
# What a run keeps of the description of its region shards; the names of classes are not needed to detect regions.
DESCRIBED = ("command", "fingerprint", "detector_version", *(name for name in SETTINGS if name != "class_names"))


def keep_detector(regions, folder) -> None:
    """Copies the files that `detector_of` needs from region shards to a folder, so that a run works without the shards.

    These are dataset.json without the shards, and the fitted or given files of the detector; weights of networks are
    not copied.

    Args:
        regions: folder of region shards; nothing is copied if it has no dataset.json.
        folder: output folder; its previous content is removed.
    """
    regions, folder = Path(regions), Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if not (regions / "dataset.json").exists():
        return
    described, plan = read_json(regions / "dataset.json"), current_flags(ExtractConfig, plan_of(regions))
    if plan.get("command") == "shards.extract":
        plan = {name: plan[name] for name in DESCRIBED if name in plan}
        folder.mkdir(parents=True)
        for name in _detector_class(plan.get("detector", "pixels")).learned:
            if (regions / name).exists():
                shutil.copyfile(regions / name, folder / name)
        if plan.get("detector_config") and os.path.exists(plan["detector_config"]):
            shutil.copyfile(plan["detector_config"], folder / SIZES)
        plan |= {name: absolute_path(plan[name]) for name in ("weights", "detector") if name in plan}
    kept = {name: described[name] for name in ("format", "detector", "feature_size", "num_classes")}
    write_json(folder / "dataset.json", kept | {"extra": {"plan": plan}})


def check_version(folder: Path, detector: Detector | type[Detector], remedy: str) -> None:
    """Raises UserError for region shards made by another version of the detector. remedy: what to do."""
    plan = plan_of(folder)
    if plan.get("command") == "shards.extract" and plan.get("detector", "pixels") == detector.name:
        version = plan.get("detector_version", 1)
        if version != detector.version:
            raise UserError(
                f"{folder}: was made with version {version} of the detector {detector.name}, but this is version "
                f"{detector.version}; {remedy}"
            )


def detector_of(folder: Path, device: str) -> Detector:
    """Loads the detector of region shards, or of a folder of keep_detector, with the same settings.

    Args:
        folder: of region shards made by shards.extract, or of keep_detector.
        device: cpu or cuda.

    Raises:
        UserError: the folder has no detector, or its files or weights are missing or differ from those that were used.
    """
    path = Path(folder) / "dataset.json"
    if (Path(folder) / UNFINISHED).exists() or not path.exists():
        raise UserError(f"{folder}: contains no finished region shards, whose detector is needed")
    plan = current_flags(ExtractConfig, plan_of(folder))
    if plan.get("command") != "shards.extract":
        raise UserError(f"{folder}: regions were converted, without a detector; use shards made by shards.extract")
    given = {name: plan[name] for name in SETTINGS if plan.get(name) is not None}
    check_fields({"images": "", "out": "", **given}, ExtractConfig, path)
    if (Path(folder) / SIZES).exists():
        given["detector_config"] = str(Path(folder) / SIZES)
    detector = make_detector(ExtractConfig(images="", out=str(folder), device=device, **given))
    check_version(folder, detector, "extract the images again")
    if detector.fingerprint != plan.get("fingerprint"):
        raise UserError(f"{plan['weights']}: differs from the weights used for {folder}; extract the images again")
    if not detector.load(Path(folder)):
        raise UserError(f"{folder}: fitted files of the detector are missing; extract the images again")
    return detector
