"""The recipe of the models on photographs: the flags of every command, read from one JSON file."""

from dataclasses import dataclass, fields
from pathlib import Path

from pretrain.models.model_config import ModelConfig, read_model_config
from shards.common.errors import UserError
from shards.common.files import read_json

DEFAULT_RECIPE = str(Path(__file__).with_name("recipe.json"))
EVERY_TASK = "every task"


@dataclass(frozen=True)
class Recipe:
    """Flags by name, except those that identify a run (data, out, seed, initial weights).

    Attributes:
        model: JSON file of the model configuration, next to the recipe.
        extract, pretrain, together: flags of shards.extract, pretrain.run and finetune.mt.
        alone: flags of finetune.st by task, and those of EVERY_TASK.
        score: flags of finetune.evaluate; `rerank` only applies to models with a contrastive head.
    """

    model: str
    extract: dict
    pretrain: dict
    together: dict
    alone: dict[str, dict]
    score: dict

    @property
    def sizes(self) -> ModelConfig:
        return read_model_config(self.model)

    def alone_on(self, task: str) -> dict:
        """The flags of finetune.st on a task."""
        return self.alone.get(EVERY_TASK, {}) | self.alone.get(task, {})


def read_recipe(path: str, tasks: tuple[str, ...]) -> Recipe:
    """Reads a recipe. tasks: the names allowed in `alone`."""
    value, names = read_json(path), [field.name for field in fields(Recipe)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise UserError(f"--recipe {path}: should be a JSON object with {', '.join(names)}")
    for name in value["alone"]:
        if name not in (EVERY_TASK, *tasks):
            raise UserError(f"--recipe {path}: alone has {name}; should be {EVERY_TASK} or one of {', '.join(tasks)}")
    return Recipe(**value | {"model": str(Path(path).parent / value["model"])})
