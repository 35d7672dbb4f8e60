"""The forward pass of a pretraining step (masking, model, losses) and its metrics."""

from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.pretraining_loss import Inputs, Losses, Objective


class Pass(nn.Module):
    """Masking, model and losses as one module, for DistributedDataParallel and Engine."""

    def __init__(self, model: PretrainingModel, objective: Objective, precision: Precision):
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision

    def forward(self, batch: Batch, counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the batch's contribution to the training loss, and metric sums.

        Args:
            counts: predicted tokens, predicted regions and pairs of the global batch, the denominators of the losses;
                three numbers, or a tensor (3,) on the device.
        """
        inputs, losses = self.losses(batch)
        return losses.total(*counts, self.objective.contrastive), _numbers(batch, inputs, losses)

    def losses(self, batch: Batch) -> tuple[Inputs, Losses]:
        inputs = self.objective.mask(batch, self.precision.dtype)
        with self.precision.autocast():
            return inputs, self.objective.losses(self.model, batch, inputs)


def _numbers(batch: Batch, inputs: Inputs, losses: Losses) -> dict[str, Tensor]:
    """Metric sums of a batch, which can be added over accumulation steps and ranks."""
    return {
        "words": losses.words.detach(),
        "regions": losses.regions.detach(),
        "alignment": losses.alignment.detach(),
        "words_right": losses.words_right,
        "regions_right": losses.regions_right,
        "alignment_right": losses.alignment_right,
        "contrastive": losses.contrastive.detach(),
        "contrastive_right": losses.contrastive_right,
        "contrastive_count": losses.contrastive_count,
        "word_count": losses.word_count,
        "region_count": losses.region_count,
        "pair_count": losses.pair_count,
        "zeroed": inputs.masked_regions.zeroed.sum(),
        "hidden": inputs.masked_regions.masked.sum(),
        "valid": batch.valid.sum(),
    }


def means(sums: dict[str, float], contrastive: float = 0.0) -> dict[str, float]:
    """Computes losses, accuracies and shares from metric sums.

    Args:
        sums: sums of _numbers, and `steps` and `gradient_norm` of Engine.
        contrastive: weight of the contrastive loss.
    """
    words, regions, pairs = max(sums["word_count"], 1), max(sums["region_count"], 1), max(sums["pair_count"], 1)
    valid = max(sums["valid"], 1)
    loss = sums["words"] / words + sums["regions"] / regions + sums["alignment"] / pairs
    contrasted = {}
    if contrastive:
        loss += contrastive * sums["contrastive"] / pairs
        contrasted["loss_contrastive"] = sums["contrastive"] / pairs
        contrasted["contrastive_accuracy"] = sums["contrastive_right"] / max(sums["contrastive_count"], 1)
    return {
        "loss": loss,
        "loss_words": sums["words"] / words,
        "loss_regions": sums["regions"] / regions,
        "loss_alignment": sums["alignment"] / pairs,
        "word_accuracy": sums["words_right"] / words,
        "region_accuracy": sums["regions_right"] / regions,
        "alignment_accuracy": sums["alignment_right"] / pairs,
        "gradient_norm": sums["gradient_norm"] / max(sums["steps"], 1),
        "hidden_by_choice": sums["zeroed"] / valid,
        "hidden_by_overlap": (sums["hidden"] - sums["zeroed"]) / valid,
        **contrasted,
    }
