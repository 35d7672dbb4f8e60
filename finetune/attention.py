"""python -m finetune.attention --run RUN --image ID --text "..." --task T: a page with the model's attention maps."""

from dataclasses import dataclass
from pathlib import Path

from finetune.config import ModelFlags
from finetune.inference.predictor import LazyPredictor
from finetune.inference.request import parse_boxes
from finetune.pages.attention_page import page_of
from shards.common.cli import REQUIRED, command, flag
from shards.common.files import split_paths, whole_file


@dataclass
class AttentionConfig(ModelFlags):
    """Flags of finetune.attention."""

    image: str = flag(REQUIRED, "image file, or id of an image of the data; comma-separated for several")
    text: str = flag(REQUIRED, "question, expression, caption or statement")
    task: str | None = flag(
        None, "task, such as vqa; an unknown name prints the list", unset="the only task of the run"
    )
    boxes: str | None = flag(None, "candidate boxes: x1,y1,x2,y2 in pixels, separated by semicolons", unset="none")
    out: str = flag("attention.html", "output file for the page", written=True)


def run(config: AttentionConfig) -> None:
    predictor = LazyPredictor(config)
    names, boxes = split_paths(config.image), parse_boxes(config.boxes)
    ask = predictor.query if all(Path(name).is_file() for name in names) else predictor.query_by_id
    query = ask(predictor.task_or_only(config.task), config.text, *names, boxes=boxes)
    with whole_file(config.out, "w", encoding="utf-8") as file:
        file.write(page_of(predictor, query))
    print(f"page: {config.out}")


EXAMPLES = (
    "python -m finetune.attention --run runs/mt --task vqa --image photo.jpg --text 'What is the man holding?'",
)


if __name__ == "__main__":
    command(
        AttentionConfig,
        run,
        "finetune.attention",
        "A page with a model's attention between tokens and regions.",
        examples=EXAMPLES,
    )
