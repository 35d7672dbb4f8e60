"""The pretraining losses: masked words and masked regions on aligned pairs alone, and alignment (paper, 8.2).

Beyond the paper there are a contrastive loss of the two streams, and hard negatives for alignment (contrastive.py).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain import masking
from pretrain.batch import Batch
from pretrain.contrastive import comparable, contrastive_losses, cosine_similarities, hard_negatives, retrieved
from pretrain.heads import PretrainingModel
from pretrain.model import Encoded
from pretrain.packing import positions

REGION_TARGETS = ("classes", "features", "none")
NEGATIVES = ("random", "hard")


@dataclass
class Inputs:
    """A masked batch on the device: the encoder's arguments, and where and what to predict.

    word_positions, region_positions: int64 (n,), flat indices into (B, L) and (B, N); word_labels int64 (n,);
    word_weights, region_weights: bool (n,), false where a position fills up the batch's capacity and does not count.
    """

    input_ids: Tensor
    text_mask: Tensor
    features: Tensor
    locations: Tensor
    image_mask: Tensor
    word_positions: Tensor
    word_labels: Tensor
    word_weights: Tensor
    region_positions: Tensor
    region_weights: Tensor
    hidden: masking.HiddenRegions


@dataclass
class Losses:
    """Sums over the batch and the counts that they are sums of, scalars on the device.

    The trainer divides by the counts of the whole global batch, so that ranks and accumulation steps with
    unequal counts still give one true mean.
    """

    words: Tensor
    regions: Tensor
    alignment: Tensor
    word_count: Tensor
    region_count: Tensor
    pair_count: Tensor
    words_right: Tensor
    regions_right: Tensor
    alignment_right: Tensor
    contrastive: Tensor
    contrastive_count: Tensor
    contrastive_right: Tensor

    def total(self, word_count, region_count, pair_count, contrastive: float = 0.0) -> Tensor:
        """The training loss, as a part of the means over these counts (numbers, or scalars on the device).

        A count of zero adds nothing. contrastive: the weight of the contrastive loss, a mean over all pairs.
        """
        words, regions, pairs = map(_at_least_one, (word_count, region_count, pair_count))
        total = self.words / words + self.regions / regions + self.alignment / pairs
        return total + contrastive * self.contrastive / pairs if contrastive else total


def _at_least_one(count):
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@dataclass(frozen=True)
class Objective:
    """What is hidden and what is predicted.

    mask_id, ordinary_ids: of the tokenizer; region_target: REGION_TARGETS; overlap: the IoU from which regions
    are hidden with a chosen one, None for the chosen alone; aligned_only: masked losses on aligned pairs alone;
    predict_overlapped: predict the regions hidden by overlap as well as the chosen ones; contrastive: the weight of the
    contrastive loss, 0 without; hard_negatives: in training, each pair is also recombined with a caption or an image of
    the batch that the streams confuse it with, as a misaligned pair of the alignment loss.
    """

    mask_id: int
    ordinary_ids: Tensor
    region_target: str = "classes"
    overlap: float | None = masking.OVERLAP
    aligned_only: bool = True
    predict_overlapped: bool = False
    contrastive: float = 0.0
    hard_negatives: bool = False

    def to(self, device) -> "Objective":
        return replace(self, ordinary_ids=self.ordinary_ids.to(device))

    def choose(self, batch: Batch) -> tuple[Tensor, masking.HiddenRegions, Tensor, Tensor]:
        """Chosen words (B, L), hidden regions, and what is predicted of both: bool (B, L) and (B, N)."""
        words = masking.choose_words(batch.keys, batch.lengths, batch.input_ids.shape[1])
        hidden = masking.hide_regions(batch.keys, batch.boxes, batch.valid, self.overlap)
        regions = hidden.chosen | hidden.hidden if self.predict_overlapped else hidden.chosen
        if self.region_target == "none":
            regions = torch.zeros_like(regions)
        if not self.aligned_only:
            return words, hidden, words, regions
        aligned = ~batch.misaligned[:, None]
        return words, hidden, words & aligned, regions & aligned

    def count(self, batch: Batch) -> tuple[int, int]:
        """How many words and regions will be predicted; a collating process works this out ahead, on the CPU.

        Known counts keep the step on a GPU free of waiting: the shapes of what is predicted depend on them.
        """
        _, _, words, regions = self.choose(batch)
        return int(words.sum()), int(regions.sum())

    def mask(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Inputs:
        """Hides words and regions of a batch that is already on the device (and so must the objective be).

        dtype: of the features that come out; the type that autocast computes in saves a pass over them.
        """
        chosen, hidden, words, regions = self.choose(batch)
        features, locations = masking.image_rows(batch.features, batch.boxes, batch.valid & ~hidden.hidden, dtype)
        word_positions = positions(words, batch.word_count)
        region_positions = positions(regions, batch.region_count)
        place = torch.arange(batch.input_ids.shape[1], device=batch.lengths.device)
        return Inputs(
            input_ids=masking.mask_words(batch.input_ids, chosen, batch.keys, self.mask_id, self.ordinary_ids),
            text_mask=place < batch.lengths[:, None],
            features=features,
            locations=locations,
            image_mask=F.pad(batch.valid, (1, 0), value=True),
            word_positions=word_positions,
            word_labels=batch.input_ids.flatten()[word_positions],
            word_weights=words.flatten()[word_positions],
            region_positions=region_positions,
            region_weights=regions.flatten()[region_positions],
            hidden=hidden,
        )

    def losses(self, model: PretrainingModel, batch: Batch, inputs: Inputs) -> Losses:
        """One pass of the model over a masked batch."""
        encoded = model.encoder(
            inputs.input_ids,
            inputs.text_mask,
            inputs.features,
            inputs.locations,
            inputs.image_mask,
            text_count=batch.pieces,
            image_count=batch.image_rows,
            sample_keys=batch.keys,
        )
        word_scores = at_least_float32(model.word_scores(encoded.text.flatten(0, 1)[inputs.word_positions]))
        regions, regions_right = self._region_losses(model, batch, inputs, encoded.image[:, 1:].flatten(0, 1))
        return Losses(
            words=_sum(F.cross_entropy(word_scores, inputs.word_labels, reduction="none"), inputs.word_weights),
            regions=_sum(regions, inputs.region_weights),
            word_count=inputs.word_weights.sum(),
            region_count=inputs.region_weights.sum(),
            pair_count=(batch.lengths > 0).sum(),
            words_right=((word_scores.detach().argmax(-1) == inputs.word_labels) & inputs.word_weights).sum(),
            regions_right=(regions_right & inputs.region_weights).sum(),
            **self._pair_losses(model, batch, encoded),
        )

    def _pair_losses(self, model: PretrainingModel, batch: Batch, encoded: Encoded) -> dict[str, Tensor]:
        """The sums of Losses that are of whole pairs: alignment, and the contrastive ones."""
        labels, pairs = batch.misaligned.long(), batch.lengths > 0
        alignment, right = _alignment(model, encoded, labels)
        none = alignment.new_zeros(())
        sums = {"contrastive": none, "contrastive_count": none, "contrastive_right": none}
        if self.contrastive:
            scores = cosine_similarities(*model.encoder.embed(encoded.begun))
            aligned = pairs & ~batch.misaligned
            negatives = comparable(batch.image_ids, batch.text_ids, aligned)
            counted = negatives.any(1)
            sums["contrastive"] = _sum(contrastive_losses(scores, negatives), counted)
            sums["contrastive_count"] = counted.sum()
            sums["contrastive_right"] = (retrieved(scores.detach(), negatives) & counted).sum()
            if self.hard_negatives and model.training:
                keys = masking.negative_keys(batch.keys)
                captions, images, found = hard_negatives(scores, negatives, keys)
                other = model.encoder.finish(encoded.begun.recombined(captions, images, keys))
                misaligned, rejected = _alignment(model, other, torch.ones_like(labels))
                # The mean of both, so that alignment stays a loss of one number for each pair.
                alignment = torch.where(found, (alignment + misaligned) / 2, alignment)
                right = torch.where(found, (right + rejected) / 2, right)
        return sums | {"alignment": _sum(alignment, pairs), "alignment_right": _sum(right, pairs)}

    def _region_losses(
        self, model: PretrainingModel, batch: Batch, inputs: Inputs, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of each predicted region (n,), and whether its likeliest class was predicted, bool (n,)."""
        chosen = inputs.region_positions
        none = torch.zeros_like(inputs.region_weights)
        if self.region_target == "none":
            return states.new_zeros(len(chosen), dtype=torch.float32), none
        scores = at_least_float32(model.regions(states[chosen]))
        if self.region_target == "features":
            target = batch.features.flatten(0, 1)[chosen].float()
            return F.mse_loss(scores, target.to(scores.dtype), reduction="none").mean(-1), none
        class_ids, class_probs = (x.flatten(0, 1)[chosen] for x in (batch.class_ids, batch.class_probs))
        target = class_distribution(class_ids, class_probs, scores.shape[-1])
        right = scores.detach().argmax(-1) == target.argmax(-1)
        return F.kl_div(scores.log_softmax(-1), target, reduction="none").sum(-1), right


def _alignment(model: PretrainingModel, encoded: Encoded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """float (B,) each: the losses of the alignment head, and 1 where it is right. labels: int64 (B,), 0 is aligned."""
    scores = at_least_float32(model.alignment(model.encoder.fuse(encoded)))
    return F.cross_entropy(scores, labels, reduction="none"), (scores.detach().argmax(-1) == labels).float()


def _sum(losses: Tensor, weights: Tensor) -> Tensor:
    return losses.masked_fill(~weights, 0).sum()


def at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def class_distribution(class_ids: Tensor, class_probs: Tensor, num_classes: int) -> Tensor:
    """Distributions (n, num_classes) from the likeliest classes (n, k); what these leave is spread evenly."""
    probs = class_probs.float()
    rest = (1 - probs.sum(-1, keepdim=True)).clamp(min=0)
    others = max(num_classes - class_ids.shape[-1], 1)
    target = (rest / others).expand(-1, num_classes).scatter(1, class_ids.long(), probs)
    return target / target.sum(-1, keepdim=True)
