"""The six heads of the twelve tasks on one two-stream model (reference: the paper's table 8 and section 3.2).

Heads are shared where the paper shares them: VQA and Visual Genome QA, the two retrieval tasks, and everything that
points at a region, be it the detector's or one that comes with the example.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ModelConfig
from pretrain.contrastive import pair_logits
from pretrain.dropout import Dropout, number_sites
from pretrain.layers import Norm
from pretrain.model import AttentionMaps, Encoded, TwoStream, initialise
from shards.errors import UserError

OPTIONS = 4  # of a retrieval example in training: the pair, and three that do not belong together
POINTING = ("regions", "candidates")  # heads of one layer, which scores rows: all of them, or the candidates alone
PADDING = -10000.0  # a score that no region has, as published


def layer_of(head: str) -> str:
    """The name of the layer that a head is; several may be one."""
    return "pointing" if head in POINTING else head


def alignment_as_retrieval(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Pretraining weights with a retrieval head in place of their alignment head, for zero-shot retrieval.

    The alignment head has two logits, class 0 for "aligned". Their difference, logit 0 - logit 1, is the log odds that
    a caption and an image are aligned, and as linear in the fused vector as they are.

    Args:
        weights: under our names, the alignment head (2, size) among them.
        where: the file or directory, for error messages.
    """
    weights = dict(weights)
    for kind in ("weight", "bias"):
        if f"alignment.{kind}" not in weights:
            raise UserError(
                f"{where}: has no alignment head (cls.bi_seq_relationship in published weights), by which retrieval "
                "without fine-tuning would rank; fine-tune these weights first"
            )
        aligned, misaligned = weights.pop(f"alignment.{kind}")
        weights[f"heads.retrieval.{kind}"] = (aligned - misaligned)[None]
    return weights


class AnswerHead(nn.Module):
    """A fused vector (B, size) -> scores (B, answers): Linear, GELU, LayerNorm, Linear."""

    def __init__(self, size: int, inner: int, answers: int):
        super().__init__()
        self.dense, self.norm, self.decoder = nn.Linear(size, inner), Norm(inner), nn.Linear(inner, answers)

    def forward(self, fused: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(fused))))


@dataclass
class TaskInputs:
    """A batch as the model takes it.

    Rows of images: 0 the whole image, then regions, then the image's other given boxes and the candidates if there are
    any.

    input_ids int64 (B, L), text_mask bool (B, L), features (B, R, D), locations (B, R, 5), image_mask bool (B, R),
    task_ids int64 (B,), or None for a model without task tokens; candidates: how many of the last rows are candidates;
    text_count, image_count: how many places of the masks are true, where that is known; sample_keys int64 (B,) and
    image_positions int64 (R,): what dropout follows from (see TwoStream.forward).
    For NLVR2 the rows of B are left, right, left, right; for retrieval in training OPTIONS rows are one example.
    """

    input_ids: Tensor
    text_mask: Tensor
    features: Tensor
    locations: Tensor
    image_mask: Tensor
    task_ids: Tensor | None = None
    candidates: int = 0
    text_count: int | None = None
    image_count: int | None = None
    sample_keys: Tensor | None = None
    image_positions: Tensor | None = None


class TaskModel(nn.Module):
    """The two-stream model with the heads that are asked for.

    answers: the sizes of the answer heads, {"vqa": 3129, "gqa": 1533}; a head that is not named there is left out.
    """

    def __init__(self, config: ModelConfig, answers: dict[str, int]):
        super().__init__()
        self.encoder = TwoStream(config)
        fused = config.bi_hidden_size
        heads = {name: AnswerHead(fused, 2 * fused, count) for name, count in answers.items()}
        heads["retrieval"] = nn.Linear(fused, 1)
        heads["pointing"] = nn.Linear(config.v_hidden_size, 1)
        heads["nlvr2"] = AnswerHead(2 * fused, 2 * fused, 2)
        heads["entailment"] = nn.Linear(fused, 3)
        self.heads = nn.ModuleDict(heads)
        self.region_dropout = Dropout(config.v_hidden_dropout_prob)
        number_sites(self)
        initialise(self.heads, config.initializer_range)

    def forward(self, inputs: TaskInputs, head: str) -> Tensor:
        """Scores: (B, answers) of vqa, gqa, entailment; (B,) of retrieval; (B / 2, 2) of nlvr2; of regions (B, R) over
        all rows; of candidates (B, K) over the last ones; PADDING where there is no region."""
        return self.scores(self.encode(inputs), inputs, head)

    def encode(self, inputs: TaskInputs, maps: AttentionMaps | None = None) -> Encoded:
        """The states of both streams; `maps` collects exact attention maps."""
        return self.encoder(
            inputs.input_ids,
            inputs.text_mask,
            inputs.features,
            inputs.locations,
            inputs.image_mask,
            task_ids=inputs.task_ids,
            maps=maps,
            text_count=inputs.text_count,
            image_count=inputs.image_count,
            sample_keys=inputs.sample_keys,
            image_positions=inputs.image_positions,
        )

    def scores(self, encoded: Encoded, inputs: TaskInputs, head: str) -> Tensor:
        """What `forward` says, from states that are there already."""
        if head in POINTING:
            first = -inputs.candidates if head == "candidates" else 0
            keys = None if encoded.image_keys is None else encoded.image_keys[:, first:]
            points = self.heads["pointing"](self.region_dropout(encoded.image[:, first:], keys))[..., 0]
            return points.masked_fill(~inputs.image_mask[:, first:], PADDING)
        fused = self.encoder.fuse(encoded)
        if head == "nlvr2":
            fused = fused.reshape(len(fused) // 2, 2 * fused.shape[-1])
        scores = self.heads[head](fused)
        if head != "retrieval":
            return scores
        contrastive = 0 if encoded.begun is None else pair_logits(*self.encoder.embed(encoded.begun))
        return scores[..., 0] + contrastive
