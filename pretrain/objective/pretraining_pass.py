"""The forward pass of a pretraining step: masking, model and losses."""

from torch import Tensor, nn

from pretrain.data.batch import Batch
from pretrain.models.precision import Precision
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.objective.masking import MaskedInputs
from pretrain.objective.pretraining_loss import LossSums, Objective


class PretrainingPass(nn.Module):
    """Masking, model and losses as one module, for DistributedDataParallel and Engine."""

    def __init__(self, model: PretrainingModel, objective: Objective, precision: Precision):
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision

    def forward(self, batch: Batch, denominators) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the batch's contribution to the training loss, and sums that `metrics` takes.

        Args:
            denominators: the numbers of predicted tokens, of predicted regions and of pairs of the global batch; three
                numbers, or a tensor (3,) on the device.
        """
        inputs, losses = self.losses(batch)
        regions = inputs.masked_regions
        # The names are those of the sums in checkpoints, which a resumed run continues.
        masked = {"zeroed": regions.seeds.sum(), "hidden": regions.masked.sum(), "valid": batch.valid.sum()}
        sums = {name: value.detach() for name, value in losses.sums.items()}
        return losses.loss(denominators), sums | losses.local_counts | masked

    def losses(self, batch: Batch) -> tuple[MaskedInputs, LossSums]:
        inputs = self.objective.mask(batch, self.precision.dtype)
        with self.precision.autocast():
            return inputs, self.objective.forward_losses(self.model, batch, inputs)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Losses, accuracies and shares. sums: those of `forward`, and `steps` and `gradient_norm` of Engine."""
        valid = max(sums["valid"], 1)
        return self.objective.metrics(sums) | {
            "gradient_norm": sums["gradient_norm"] / max(sums["steps"], 1),
            "masked_by_choice": sums["zeroed"] / valid,
            "masked_by_overlap": (sums["hidden"] - sums["zeroed"]) / valid,
        }
