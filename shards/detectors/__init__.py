"""Detectors by name: a file of this folder each, with a DETECTOR; any other name is a model of transformers."""

import importlib
import pkgutil
from pathlib import Path

from shards.dataset import UNFINISHED
from shards.detector import Detector
from shards.errors import UserError
from shards.files import read_json


def make_detector(config) -> Detector:
    """The detector that the flags of shards.extract name, yet to be fitted or loaded."""
    names = {module.name for module in pkgutil.iter_modules(__path__)}
    name = config.detector if config.detector in names else "transformers_model"
    return importlib.import_module(f"{__name__}.{name}").DETECTOR(config)


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
    """The detector that made the region shards of a folder, as it was then, on a device (cpu, cuda)."""
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
    detector = make_detector(ExtractConfig(images="", out=str(folder), device=device, **given))
    check_version(folder, detector, "extract its images again to have regions found in others")
    if detector.fingerprint != plan.get("fingerprint"):
        raise UserError(f"{plan['weights']}: not the weights that {folder} was extracted with; extract it again")
    if not detector.load(Path(folder)):
        raise UserError(f"{folder}: lacks what its detector learned; extract it again")
    return detector
