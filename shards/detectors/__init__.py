"""Detectors by name: a file of this folder each, with a DETECTOR; any other name is a model of transformers."""

import importlib
import pkgutil

from shards.detector import Detector


def make_detector(config) -> Detector:
    """The detector that the flags of shards.extract name, yet to be fitted or loaded."""
    names = {module.name for module in pkgutil.iter_modules(__path__)}
    name = config.detector if config.detector in names else "transformers_model"
    return importlib.import_module(f"{__name__}.{name}").DETECTOR(config)
