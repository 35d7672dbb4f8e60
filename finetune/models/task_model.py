"""The six task heads on the two-stream model (paper, section 3.2 and table 8).

Heads are shared as in the paper: by VQA and Visual Genome QA, by the two retrieval tasks, and by all pointing tasks,
whether they choose among detected regions or among the candidate boxes of an example.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.contrastive import pair_logits
from pretrain.models.dropout import Dropout, number_sites
from pretrain.models.layers import Norm
from pretrain.models.model_config import ModelConfig
from pretrain.models.packing import Layout
from pretrain.models.vilbert import AttentionMaps, Encoded, TwoStream, initialise
from shards.common.errors import UserError

RETRIEVAL_OPTIONS = 4  # pairs of a retrieval example in training: the aligned one and three negatives
POINTING = ("regions", "candidates")  # these share a layer that scores image rows: all of them, or only the candidates
PADDING = -10000.0  # score of padding rows, as in the reference implementation


def layer_of(head: str) -> str:
    """The name of the layer of a head; several heads may share a layer."""
    return "pointing" if head in POINTING else head


def alignment_as_retrieval(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Converts the alignment head of pretraining weights to a retrieval head, for zero-shot retrieval.

    The alignment head has two logits, class 0 for "aligned". Their difference, logit 0 - logit 1, is the log odds that
    a caption and an image are aligned, and is linear in the fused vector too.

    Args:
        weights: state dict with this package's names, including the alignment head (2, size).
        where: file or directory, for error messages.
    """
    weights = dict(weights)
    for kind in ("weight", "bias"):
        if f"alignment.{kind}" not in weights:
            raise UserError(
                f"{where}: has no alignment head (cls.bi_seq_relationship in published weights), which zero-shot "
                "retrieval needs; fine-tune these weights first"
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
    """Inputs of the model for one batch.

    Rows of the image stream: the image token (row 0), the regions, the image's other given boxes, the candidates.
    For NLVR2 the batch rows are left, right, left, right, ...; in retrieval training OPTIONS batch rows are one
    example.

    Attributes:
        input_ids: int64 (B, L).
        text_mask: bool (B, L).
        features: (B, R, D).
        locations: (B, R, 5).
        image_mask: bool (B, R).
        task_ids: int64 (B,), None for a model without task tokens.
        candidates: number of candidates, the last of the R rows.
        text_count, image_count: number of true values of the masks, if known.
        sample_keys: int64 (B,), seeds of dropout (see TwoStream.forward).
        image_positions: int64 (R,), positions for dropout (see TwoStream.forward).
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
    """The two-stream model with task heads.

    answers: answer heads with their numbers of answers, such as {"vqa": 3129, "gqa": 1533}. All other heads are always
    created.
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
        """The scores (logits) of a head.

        Returns:
            (B, answers) for answer heads; (B, 3) for entailment; (B,) for retrieval; (B / 2, 2) for nlvr2; (B, R) for
            regions and (B, K) for candidates, with PADDING in padding rows.
        """
        return self.scores(self.encode(inputs), inputs, head)

    def encode(self, inputs: TaskInputs, maps: AttentionMaps | None = None) -> Encoded:
        """The hidden states of both streams; `maps` collects attention maps."""
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

    def encode_text_alone(self, inputs: TaskInputs) -> tuple[Tensor, Layout]:
        """The text stream before the first co-attention layer; see TwoStream."""
        return self.encoder.encode_text_alone(
            inputs.input_ids, inputs.text_mask, inputs.text_count, task_ids=inputs.task_ids
        )

    def encode_image_alone(self, inputs: TaskInputs) -> tuple[Tensor, Layout]:
        """The image stream before the first co-attention layer; see TwoStream."""
        return self.encoder.encode_image_alone(inputs.features, inputs.locations, inputs.image_mask, inputs.image_count)

    def scores(self, encoded: Encoded, inputs: TaskInputs, head: str) -> Tensor:
        """As `forward`, from encoded inputs."""
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
        contrastive = 0 if encoded.stream_states is None else pair_logits(*self.encoder.embed(encoded.stream_states))
        return scores[..., 0] + contrastive
