"""python -m finetune.predict IMAGE --run RUN --task vqa --text "...": predictions for an image file.

from finetune import Predictor
print(Predictor("runs/mt")("vqa", "What color is the star?", "scene.png"))
"""

from dataclasses import dataclass

from finetune.config import ModelFlags
from finetune.inference.predictor import LazyPredictor, Predictor
from finetune.inference.request import parse_boxes
from shards.common.cli import REQUIRED, command, flag
from shards.common.files import split_paths

__all__ = ["PredictConfig", "Predictor", "run"]  # Predictor: the import path of earlier versions


@dataclass
class PredictConfig(ModelFlags):
    """Flags of finetune.predict."""

    image: str = flag(REQUIRED, "image file, or several separated by commas", first=True)
    text: str = flag(REQUIRED, "question, expression, caption or statement")
    task: str | None = flag(
        None, "task, such as vqa; an unknown name prints the list", unset="the only task of the run"
    )
    boxes: str | None = flag(None, "candidate boxes: x1,y1,x2,y2 in pixels, separated by semicolons", unset="none")
    top: int = flag(5, "number of predictions that are printed, the most likely ones", low=1)


def run(config: PredictConfig) -> None:
    predictor = LazyPredictor(config)
    images, task = split_paths(config.image), predictor.task_or_only(config.task)
    print(predictor(task, config.text, *images, boxes=parse_boxes(config.boxes), top=config.top))


EXAMPLES = ("python -m finetune.predict --run runs/mt --task vqa --image photo.jpg --text 'What is the man holding?'",)


if __name__ == "__main__":
    command(PredictConfig, run, "finetune.predict", "Predictions of a model for image files.", examples=EXAMPLES)
