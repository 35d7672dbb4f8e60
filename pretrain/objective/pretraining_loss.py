"""The pretraining losses: masked tokens and masked regions on aligned pairs only, and alignment (paper, section 8.2).

A contrastive loss of the two streams and hard negatives for alignment are extensions (pretrain/models/contrastive.py).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data import random_choices
from pretrain.data.batch import Batch
from pretrain.models.contrastive import comparable, contrastive_losses, cosine_similarities, hard_negatives, retrieved
from pretrain.models.image_input import image_rows
from pretrain.models.packing import positions
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.models.vilbert import Encoded
from pretrain.objective import masking

REGION_TARGETS = ("classes", "features", "none")
NEGATIVES = ("random", "hard")


@dataclass
class Inputs:
    """A masked batch on the device: the encoder's arguments, and the positions and labels to predict.

    Attributes:
        word_positions, region_positions: int64 (n,), flat indices into (B, L) and (B, N).
        word_labels: int64 (n,).
        word_weights, region_weights: bool (n,), false for padding up to the capacity, which has no loss.
        masked_regions: which regions are chosen, zeroed and masked.
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
    masked_regions: masking.MaskedRegions


@dataclass
class Losses:
    """Sums of losses and correct predictions over the batch, and their counts; scalars on the device.

    The trainer divides by the counts of the global batch, so that the mean is exact if counts differ between ranks or
    accumulation steps.
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
        """This batch's contribution to the training loss.

        Args:
            word_count, region_count, pair_count: denominators of the means, numbers or scalars on the device. A count
                of 0 contributes 0.
            contrastive: weight of the contrastive loss, a mean over all pairs.
        """
        words, regions, pairs = map(_at_least_one, (word_count, region_count, pair_count))
        total = self.words / words + self.regions / regions + self.alignment / pairs
        return total + contrastive * self.contrastive / pairs if contrastive else total


def _at_least_one(count):
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@dataclass(frozen=True)
class Objective:
    """Masking and losses of pretraining.

    Attributes:
        mask_id, ordinary_ids: ids of [MASK] and of the tokens that are not special.
        region_target: one of REGION_TARGETS.
        overlap: IoU threshold of overlap masking; None for none.
        aligned_only: masked losses on aligned pairs only.
        predict_overlapped: also predict the regions that are masked because of overlap.
        contrastive: weight of the contrastive loss; 0 for none.
        hard_negatives: in training, add to the alignment loss one misaligned pair per pair, sampled from the batch by
            similarity.
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

    def choose(self, batch: Batch) -> tuple[Tensor, masking.MaskedRegions, Tensor, Tensor]:
        """The chosen tokens bool (B, L), the masked regions, and the positions to predict, bool (B, L) and (B, N)."""
        words = masking.choose_words(batch.keys, batch.lengths, batch.input_ids.shape[1])
        masked = masking.choose_masked_regions(batch.keys, batch.boxes, batch.valid, self.overlap)
        regions = masked.chosen | masked.masked if self.predict_overlapped else masked.chosen
        if self.region_target == "none":
            regions = torch.zeros_like(regions)
        if not self.aligned_only:
            return words, masked, words, regions
        aligned = ~batch.misaligned[:, None]
        return words, masked, words & aligned, regions & aligned

    def count(self, batch: Batch) -> tuple[int, int]:
        """Number of tokens and regions to predict, computed on the CPU when the batch is collated.

        With known counts the shapes of the predictions are known, and a step does not wait for the GPU.
        """
        _, _, words, regions = self.choose(batch)
        return int(words.sum()), int(regions.sum())

    def mask(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Inputs:
        """Masks tokens and regions of a batch on the device, where the objective must be too.

        Args:
            dtype: dtype of the returned features; the autocast dtype saves a conversion.
        """
        chosen, masked, words, regions = self.choose(batch)
        features, locations = image_rows(batch.features, batch.boxes, batch.valid & ~masked.masked, dtype)
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
            masked_regions=masked,
        )

    def losses(self, model: PretrainingModel, batch: Batch, inputs: Inputs) -> Losses:
        """Runs the model on a masked batch and returns its losses."""
        encoded = model.encoder(
            inputs.input_ids,
            inputs.text_mask,
            inputs.features,
            inputs.locations,
            inputs.image_mask,
            text_count=batch.token_count,
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
        """The sums of Losses per pair: alignment and contrastive."""
        labels, pairs = batch.misaligned.long(), batch.lengths > 0
        alignment, right = _alignment(model, encoded, labels)
        none = alignment.new_zeros(())
        sums = {"contrastive": none, "contrastive_count": none, "contrastive_right": none}
        if self.contrastive:
            scores = cosine_similarities(*model.encoder.embed(encoded.stream_states))
            aligned = pairs & ~batch.misaligned
            negatives = comparable(batch.image_ids, batch.text_ids, aligned)
            counted = negatives.any(1)
            sums["contrastive"] = _sum(contrastive_losses(scores, negatives), counted)
            sums["contrastive_count"] = counted.sum()
            sums["contrastive_right"] = (retrieved(scores.detach(), negatives) & counted).sum()
            if self.hard_negatives and model.training:
                keys = random_choices.negative_keys(batch.keys)
                captions, images, found = hard_negatives(scores, negatives, keys)
                other = model.encoder.finish(encoded.stream_states.recombined(captions, images, keys))
                misaligned, rejected = _alignment(model, other, torch.ones_like(labels))
                # The mean of both, so that each pair contributes one alignment loss.
                alignment = torch.where(found, (alignment + misaligned) / 2, alignment)
                right = torch.where(found, (right + rejected) / 2, right)
        return sums | {"alignment": _sum(alignment, pairs), "alignment_right": _sum(right, pairs)}

    def _region_losses(
        self, model: PretrainingModel, batch: Batch, inputs: Inputs, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of each predicted region (n,), and whether the predicted class is the most probable, bool (n,)."""
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
    """float (B,) each: the alignment loss, and 1 for a correct prediction. labels: int64 (B,), 0 is aligned."""
    scores = at_least_float32(model.alignment(model.encoder.fuse(encoded)))
    return F.cross_entropy(scores, labels, reduction="none"), (scores.detach().argmax(-1) == labels).float()


def _sum(losses: Tensor, weights: Tensor) -> Tensor:
    return losses.masked_fill(~weights, 0).sum()


def at_least_float32(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def class_distribution(class_ids: Tensor, class_probs: Tensor, num_classes: int) -> Tensor:
    """Distributions (n, num_classes) from the k stored classes (n, k); the rest is spread evenly over the others."""
    probs = class_probs.float()
    rest = (1 - probs.sum(-1, keepdim=True)).clamp(min=0)
    others = max(num_classes - class_ids.shape[-1], 1)
    target = (rest / others).expand(-1, num_classes).scatter(1, class_ids.long(), probs)
    return target / target.sum(-1, keepdim=True)
