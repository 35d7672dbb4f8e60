"""The methods by which models are saved, loaded and published in the libraries of Hugging Face."""

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from finetune.inference.argument_errors import naming_arguments
from finetune.run_dirs.model_folder import write_model_folder
from shards.common.model_hub import check_hub_name, pretrained_name, upload


class PretrainedMethods(ABC):
    """save_pretrained, from_pretrained and push_to_hub, for a class whose first argument is a run.

    What is saved is the run on disk (its best checkpoint, in its own precision), as `finetune.share` does: a change of
    the weights in memory is not saved. Folders contain safetensors and JSON, and no pickle.
    """

    run: str

    @abstractmethod
    def __init__(self, run: str | Path, **options: Any): ...

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, **options: Any) -> Self:
        """Loads a folder of save_pretrained or a repository of the hub; equal to the class itself with hf:OWNER/NAME.

        Args:
            name: a folder, a run directory, or OWNER/NAME on the Hugging Face hub. An existing folder takes precedence.
            revision: branch, tag or commit of a repository.
            options: arguments of the class.

        Raises:
            UserError: neither a folder nor the hub nor its cache has the model, or it cannot be loaded.
        """
        with naming_arguments():
            run = pretrained_name(name, revision)
        return cls(run, **options)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """Writes everything that others need to a folder: weights, configuration, tokenizer, answers, model card.

        Args:
            folder: new or empty, or written by this method earlier.
            license: licence of the weights for the model card, such as mit or cc-by-4.0.

        Returns:
            The folder.

        Raises:
            UserError: the folder contains something else, or the model was not loaded from a run.
        """
        with naming_arguments():
            return write_model_folder(self.run, folder, license)

    def push_to_hub(self, repository: str, *, license: str | None = None, private: bool = False) -> str:
        """Uploads what save_pretrained writes to the Hugging Face hub.

        Args:
            repository: OWNER/NAME; it is created if it does not exist.
            license: see save_pretrained.
            private: make a new repository private.

        Returns:
            The address of the repository.

        Raises:
            UserError: as save_pretrained, or the hub does not answer or refuses.
        """
        with naming_arguments(), tempfile.TemporaryDirectory() as folder:
            check_hub_name(repository)
            return upload(write_model_folder(self.run, folder, license), repository, private)
