"""Attention maps of a batch, computed exactly, with the tokens and regions that they connect."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune.data.task_collate import TaskBatch
from finetune.heads.grounding_head import WHOLE_IMAGE
from finetune.objective.task_pass import TaskPass
from pretrain.models.vilbert import AttentionMaps
from pretrain.tokenizer.tokenizer import WordPieceTokenizer

# The views of the paper's figures 10 to 13, as query->key: S for the sentence, I for the image.
VIEWS = {"S->S": "text", "S->I": "text_over_image", "I->S": "image_over_text", "I->I": "image"}


@dataclass
class Explanation:
    """The attention between one text and one image.

    Attributes:
        words: tokens.
        special: which of them are special tokens, including [CLS] and the task token.
        rows: names of the whole image, the regions, the image's other given boxes and the candidates.
        boxes: (rows, 4) as fractions of width and height.
        maps: view -> float32 (layers, heads, queries, keys), normalised over the keys.
    """

    words: list[str]
    special: list[bool]
    rows: list[str]
    boxes: np.ndarray
    maps: dict[str, np.ndarray]


@torch.no_grad()
def explain(task_pass: TaskPass, batch: TaskBatch, tokenizer: WordPieceTokenizer) -> list[Explanation]:
    """The attention maps of every row of a batch, without padding, computed without fused attention.

    Args:
        task_pass: model and task.
        batch: one or more text-image rows.
        tokenizer: the tokenizer.
    """
    inputs, maps = task_pass.inputs(batch), AttentionMaps()
    with task_pass.precision.autocast():
        task_pass.model.encode(inputs, maps)
    layers = {view: torch.stack(getattr(maps, name)).float().cpu().numpy() for view, name in VIEWS.items()}
    explained = []
    no_words = set(tokenizer.special.values()) - {tokenizer.special["[UNK]"]}
    for row, length in enumerate(batch.pairs.lengths.tolist()):
        ids = batch.pairs.input_ids[row, :length].tolist()
        words, special = (
            [tokenizer.backend.id_to_token(number) for number in ids],
            [number in no_words for number in ids],
        )
        if task_pass.task_token is not None:
            words.insert(1, f"[{task_pass.task.name}]")
            special.insert(1, True)
        present = np.flatnonzero(inputs.image_mask[row].cpu().numpy())
        kept = {"S": np.arange(len(words)), "I": present}
        own = {view: layers[view][:, row][:, :, kept[view[0]]][..., kept[view[-1]]] for view in VIEWS}
        names, boxes = _rows(batch, row)
        explained.append(Explanation(words, special, [names[n] for n in present], boxes[present], own))
    return explained


def _rows(batch: TaskBatch, row: int) -> tuple[list[str], np.ndarray]:
    """Names and boxes (rows, 4) of the image stream of a batch row, including padding."""
    boxes = [WHOLE_IMAGE, batch.pairs.boxes[row].cpu().numpy()]
    names = ["the whole image", *(f"region {n}" for n in range(len(boxes[1])))]
    for kind, given in (("other box", batch.other_boxes), ("candidate", batch.candidates)):
        if given is not None:
            boxes.append(given.boxes[row].cpu().numpy())
            names += [f"{kind} {n}" for n in range(len(boxes[-1]))]
    return names, np.concatenate(boxes)
