"""Detectors by name: a file of this folder each, with a DETECTOR; any other name is a model of transformers."""

import importlib
import os
import pkgutil
import shutil
from pathlib import Path

from shards.dataset import UNFINISHED
from shards.detector import Detector
from shards.errors import UserError
from shards.files import read_json, write_json
from shards.hub import HUB_NAME

OF_TRANSFORMERS = "transformers_model"  # the file of detectors that have no name of their own
SIZES = "detector_config.json"  # of the detector x152, in a folder of keep_detector


def make_detector(config) -> Detector:
    """The detector that the flags of shards.extract name, yet to be fitted or loaded."""
    detector = config.detector
    if detector not in _names() and not os.path.isdir(detector) and not HUB_NAME.fullmatch(detector):
        known = ", ".join(sorted(_names() - {OF_TRANSFORMERS}))
        raise UserError(
            f"--detector {detector}: should be one of {known}, or an object-detection model of transformers, as a "
            "directory or a name of the hub (OWNER/NAME)"
        )
    return _detector_class(detector)(config)


def _detector_class(detector: str) -> type[Detector]:
    name = detector if detector in _names() else OF_TRANSFORMERS
    return importlib.import_module(f"{__name__}.{name}").DETECTOR


def _names() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}


def absolute_path(value: str | None) -> str | None:
    """The absolute path of a detector or of its files, where it exists here; other values, as names on the hub and of
    the detectors of this folder, as they are."""
    return os.path.abspath(value) if value and value not in _names() and os.path.exists(value) else value


def keep_detector(regions, folder) -> None:
    """Copies what `detector_of` needs of region shards into a folder, for a run that is to work without them.

    These are dataset.json without the shards, and the files that the detector has learned or been given; a network's
    weights stay where they are.

    Args:
        regions: the folder of region shards; where it has no dataset.json, nothing is kept.
        folder: of which everything else is removed.
    """
    regions, folder = Path(regions), Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if not (regions / "dataset.json").exists():
        return
    described = read_json(regions / "dataset.json")
    plan = dict(described.get("extra", {}).get("plan", {}))
    if plan.get("command") == "shards.extract":
        plan.pop("class_names", None)  # are not needed to find regions
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
    """Refuses region shards that another version of the detector made; remedy: what to do then."""
    plan = read_json(Path(folder) / "dataset.json").get("extra", {}).get("plan", {})
    if plan.get("command") == "shards.extract" and plan.get("detector", "pixels") == detector.name:
        version = plan.get("detector_version", 1)
        if version != detector.version:
            raise UserError(
                f"{folder}: version {version} of the detector {detector.name} found its regions, and this is version "
                f"{detector.version}; {remedy}"
            )


def detector_of(folder: Path, device: str) -> Detector:
    """The detector that made the region shards of a folder, or whose description keep_detector put there, as it was
    then, on a device (cpu, cuda)."""
    from shards.extract import ExtractConfig  # which makes detectors itself

    path = Path(folder) / "dataset.json"
    if (Path(folder) / UNFINISHED).exists() or not path.exists():
        raise UserError(f"{folder}: holds no finished region shards; their detector is needed")
    plan = read_json(path).get("extra", {}).get("plan", {})
    if plan.get("command") != "shards.extract":
        raise UserError(f"{folder}: its regions came with no detector; name shards that shards.extract has made")
    names = ("detector", "weights", "detector_config", "class_names", "precision", "regions", "words", "seed")
    names += ("proposals", "grid", "short_side")
    given = {name: plan[name] for name in names if plan.get(name) is not None}
    if (Path(folder) / SIZES).exists():
        given["detector_config"] = str(Path(folder) / SIZES)
    detector = make_detector(ExtractConfig(images="", out=str(folder), device=device, **given))
    check_version(folder, detector, "extract its images again to have regions found in others")
    if detector.fingerprint != plan.get("fingerprint"):
        raise UserError(f"{plan['weights']}: not the weights that {folder} was extracted with; extract it again")
    if not detector.load(Path(folder)):
        raise UserError(f"{folder}: lacks what its detector learned; extract it again")
    return detector
