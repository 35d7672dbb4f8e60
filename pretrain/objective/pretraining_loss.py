"""The pretraining objective: what is masked and predicted in a batch, and the loss, a sum of terms.

As in the paper (section 8.2), tokens and regions are predicted on aligned pairs only, and the terms are masked tokens,
masked regions and alignment.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.models.image_input import image_stream_input
from pretrain.models.packing import positions
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective import masking
from pretrain.objective.alignment_term import AlignmentTerm
from pretrain.objective.loss_term import COUNTS, REGIONS, ForwardPass, LossTerm
from pretrain.objective.masking import MaskedInputs
from pretrain.objective.region_term import RegionTerm
from pretrain.objective.token_term import TokenTerm

TERMS = (TokenTerm(), RegionTerm(), AlignmentTerm())  # of the paper


@dataclass(frozen=True)
class LossSums:
    """Sums over a batch; scalars on the device.

    `loss` divides by the counts of the global batch, so that the mean is exact if counts differ between ranks or
    accumulation steps.

    Attributes:
        terms: of the loss.
        local_counts: COUNTS -> the numbers of predicted tokens, of predicted regions and of pairs.
        sums: the terms' LossTerm.named_sums.
    """

    terms: tuple[LossTerm, ...]
    local_counts: dict[str, Tensor]
    sums: dict[str, Tensor]

    def loss(self, denominators) -> Tensor:
        """This batch's contribution to the training loss.

        Args:
            denominators: of the means, in the order of COUNTS, numbers or scalars on the device. A term without
                predictions, whose denominator is 0, contributes 0.
        """
        named = dict(zip(COUNTS, map(_at_least_one, denominators), strict=True))
        first, *others = (_times(term.weight, self.sums[term.name]) / named[term.count] for term in self.terms)
        return sum(others, first)


def _times(weight: float, loss: Tensor) -> Tensor:
    return loss if weight == 1 else weight * loss  # without a kernel for nothing


def _at_least_one(count):
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@dataclass(frozen=True)
class MaskingPlan:
    """What is masked and what is predicted in a batch.

    Attributes:
        tokens: bool (B, L), those that are masked, replaced or kept.
        regions: the masked regions.
        loss_tokens, loss_regions: bool (B, L) and (B, N), the positions that have a loss.
    """

    tokens: Tensor
    regions: masking.MaskedRegions
    loss_tokens: Tensor
    loss_regions: Tensor


@dataclass(frozen=True)
class Objective:
    """Masking and losses of pretraining.

    Attributes:
        mask_id, ordinary_ids: ids of [MASK] and of the tokens that are not special.
        overlap: IoU threshold of overlap masking; None for none.
        aligned_only: masked losses on aligned pairs only.
        predict_overlapped: also predict the regions that are masked because of overlap.
        terms: of the loss.
    """

    mask_id: int
    ordinary_ids: Tensor
    overlap: float | None = masking.OVERLAP
    aligned_only: bool = True
    predict_overlapped: bool = False
    terms: tuple[LossTerm, ...] = TERMS

    def to(self, device) -> "Objective":
        return replace(self, ordinary_ids=self.ordinary_ids.to(device))

    def plan_masking(self, batch: Batch) -> MaskingPlan:
        """Chooses tokens and regions, by the keys of the batch."""
        tokens = masking.choose_tokens(batch.keys, batch.lengths, batch.input_ids.shape[1])
        masked = masking.choose_masked_regions(batch.keys, batch.boxes, batch.valid, self.overlap)
        regions = masked.chosen | masked.masked if self.predict_overlapped else masked.chosen
        if all(term.count != REGIONS for term in self.terms):
            regions = torch.zeros_like(regions)
        if not self.aligned_only:
            return MaskingPlan(tokens, masked, tokens, regions)
        aligned = ~batch.misaligned[:, None]
        return MaskingPlan(tokens, masked, tokens & aligned, regions & aligned)

    def count_predictions(self, batch: Batch) -> tuple[int, int]:
        """Number of tokens and regions to predict, computed on the CPU when the batch is collated.

        With known counts the shapes of the predictions are known, and a step does not wait for the GPU.
        """
        plan = self.plan_masking(batch)
        return int(plan.loss_tokens.sum()), int(plan.loss_regions.sum())

    def mask(self, batch: Batch, dtype: torch.dtype = torch.float32) -> MaskedInputs:
        """Masks tokens and regions of a batch on the device, where the objective must be too.

        Args:
            dtype: dtype of the returned features; the autocast dtype saves a conversion.
        """
        plan = self.plan_masking(batch)
        features, locations = image_stream_input(batch.features, batch.boxes, batch.valid & ~plan.regions.masked, dtype)
        token_positions = positions(plan.loss_tokens, batch.predicted_tokens)
        region_positions = positions(plan.loss_regions, batch.predicted_regions)
        place = torch.arange(batch.input_ids.shape[1], device=batch.lengths.device)
        return MaskedInputs(
            input_ids=masking.mask_tokens(batch.input_ids, plan.tokens, batch.keys, self.mask_id, self.ordinary_ids),
            text_mask=place < batch.lengths[:, None],
            features=features,
            locations=locations,
            image_mask=F.pad(batch.valid, (1, 0), value=True),
            token_positions=token_positions,
            token_labels=batch.input_ids.flatten()[token_positions],
            token_weights=plan.loss_tokens.flatten()[token_positions],
            region_positions=region_positions,
            region_weights=plan.loss_regions.flatten()[region_positions],
            masked_regions=plan.regions,
        )

    def forward_losses(self, model: PretrainingModel, batch: Batch, inputs: MaskedInputs) -> LossSums:
        """Runs the model on a masked batch and returns its losses."""
        encoded = model.encoder(
            inputs.input_ids,
            inputs.text_mask,
            inputs.features,
            inputs.locations,
            inputs.image_mask,
            text_count=batch.total_tokens,
            image_count=batch.image_row_count,
            sample_keys=batch.keys,
        )
        forward, sums = ForwardPass(model, batch, inputs, encoded), {}
        for term in self.terms:
            sums |= term.named_sums(forward)
        numbers = inputs.token_weights.sum(), inputs.region_weights.sum(), forward.pairs.sum()
        return LossSums(self.terms, dict(zip(COUNTS, numbers, strict=True)), sums)

    @property
    def compares_pairs(self) -> bool:
        """Whether a term needs Batch.image_ids and text_ids."""
        return any(term.compares_pairs for term in self.terms)

    @property
    def sum_names(self) -> tuple[str, ...]:
        """The names of LossSums.sums."""
        return tuple(name for term in self.terms for name in term.sum_names)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """`loss`, and the losses and accuracies of the terms.

        Args:
            sums: of LossSums.sums and LossSums.local_counts, over any number of batches and ranks.
        """
        metrics = {}
        for term in self.terms:
            metrics |= term.metrics(sums)
        return {"loss": sum(term.weight * metrics[f"loss_{term.name}"] for term in self.terms)} | metrics

    def describe(self, metrics: dict[str, float]) -> str:
        """Formats training metrics for the console."""
        losses = " ".join(f"{term.name} {metrics[f'loss_{term.name}']:.3f}" for term in self.terms)
        right = " ".join(f"{term.name} {metrics[term.accuracy]:.1%}" for term in self.terms if term.accuracy)
        return f"loss: {losses}  accuracy: {right}"
