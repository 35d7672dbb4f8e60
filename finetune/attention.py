"""python -m finetune.attention --run RUN --image ID --text "..." --task T: a page with the model's attention maps."""

from dataclasses import dataclass
from pathlib import Path

from finetune.inference.attention_maps import explain
from finetune.inference.decoding import Prediction
from finetune.inference.expression_grounding import expression_boxes
from finetune.inference.request import Query, parse_boxes
from finetune.pages.attention_page import attention_page
from finetune.predict import LazyPredictor, ModelFlags
from shards.common.cli import REQUIRED, command, flag
from shards.common.files import whole_file


@dataclass
class AttentionConfig(ModelFlags):
    """Flags of finetune.attention."""

    image: str = flag(REQUIRED, "image file, or id of an image of the data; comma-separated for several")
    task: str = flag(REQUIRED, "task, such as vqa; an unknown name prints the list")
    text: str = flag(REQUIRED, "question, expression, caption or statement")
    boxes: str | None = flag(None, "candidate boxes: x1,y1,x2,y2 in pixels, separated by semicolons", unset="none")
    out: str = flag("attention.html", "output file for the page", written=True)


def page_of(predictor: LazyPredictor, query: Query, lines: bool = True) -> str:
    """The page of a query, with the model's prediction if there is one.

    Pretraining weights predict for retrieval only, and retrieval needs at least two images. lines: see attention_page.
    """
    ranks_nothing = query.task.head == "retrieval" and len(query.names) < 2
    answers = predictor.start.has_head(query.task) and not ranks_nothing
    return explained_page(predictor, query, predictor.answer(query) if answers else None, lines)


def explained_page(predictor: LazyPredictor, query: Query, prediction: Prediction | None, lines: bool) -> str:
    """The page of a query and its prediction."""
    work, batch = predictor.batch(query)
    title = f"{query.task.title}, {predictor.run}"
    images = list(zip([Path(name).name for name in query.names], query.pixels, strict=True))
    explained = explain(work, batch, predictor.start.tokenizer)
    collator = query.collator(predictor.start.tokenizer, predictor.start.sizes)
    expressions = expression_boxes(predictor.start, work, collator, collator.examples)
    return attention_page(title, query.text, images, explained, prediction, query.size, expressions, lines)


def run(config: AttentionConfig) -> None:
    predictor = config.predictor()
    names, boxes = config.image.split(","), parse_boxes(config.boxes)
    ask = predictor.query if all(Path(name).is_file() for name in names) else predictor.query_by_id
    query = ask(config.task, config.text, *names, boxes=boxes)
    with whole_file(config.out, "w", encoding="utf-8") as file:
        file.write(page_of(predictor, query))
    print(f"page: {config.out}")


if __name__ == "__main__":
    command(AttentionConfig, run, "finetune.attention", "A page with a model's attention between tokens and regions.")
