"""What a model attended to: exact attention maps of a batch, each with the words and regions that they are between."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune.batch import WHOLE, TaskBatch
from finetune.work import TaskPass
from pretrain.model import AttentionMaps
from pretrain.tokenizer import WordPieces

# The views of the paper's figures 10 to 13, from what looks to what is looked at: S a sentence, I an image.
VIEWS = {"S->S": "text", "S->I": "text_over_image", "I->S": "image_over_text", "I->I": "image"}


@dataclass
class Explanation:
    """The attention between one text and one image.

    words: pieces; special: which of them no text has, [CLS] and the task token among them; rows: names of the whole
    image, the regions, the image's other given boxes and the candidates; boxes: (rows, 4) as shares of width and
    height; maps: view -> float32 (layers, heads, looking, looked at), each row of which sums to one.
    """

    words: list[str]
    special: list[bool]
    rows: list[str]
    boxes: np.ndarray
    maps: dict[str, np.ndarray]


@torch.no_grad()
def explain(work: TaskPass, batch: TaskBatch, pieces: WordPieces) -> list[Explanation]:
    """The explanation of every row of a batch, padding left out. The model attends step by step here, not fused."""
    inputs, maps = work.inputs(batch), AttentionMaps()
    with work.precision.autocast():
        work.model.encode(inputs, maps)
    layers = {view: torch.stack(getattr(maps, name)).float().cpu().numpy() for view, name in VIEWS.items()}
    explained = []
    no_words = set(pieces.special.values()) - {pieces.special["[UNK]"]}
    for row, length in enumerate(batch.rows.lengths.tolist()):
        ids = batch.rows.input_ids[row, :length].tolist()
        words, special = (
            [pieces.tokenizer.id_to_token(number) for number in ids],
            [number in no_words for number in ids],
        )
        if work.token is not None:
            words.insert(1, f"[{work.task.name}]")
            special.insert(1, True)
        there = np.flatnonzero(inputs.image_mask[row].cpu().numpy())
        seen = {"S": np.arange(len(words)), "I": there}
        own = {view: layers[view][:, row][:, :, seen[view[0]]][..., seen[view[-1]]] for view in VIEWS}
        names, boxes = _rows(batch, row)
        explained.append(Explanation(words, special, [names[n] for n in there], boxes[there], own))
    return explained


def _rows(batch: TaskBatch, row: int) -> tuple[list[str], np.ndarray]:
    """Names and boxes (rows, 4) of all that a row of a batch has of its image, padding too."""
    boxes = [WHOLE, batch.rows.boxes[row].cpu().numpy()]
    names = ["the whole image", *(f"region {n}" for n in range(len(boxes[1])))]
    for kind, given in (("other box", batch.other_boxes), ("candidate", batch.candidates)):
        if given is not None:
            boxes.append(given.boxes[row].cpu().numpy())
            names += [f"{kind} {n}" for n in range(len(boxes[-1]))]
    return names, np.concatenate(boxes)
