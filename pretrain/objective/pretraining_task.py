"""Pretraining on image-caption pairs, as the training loop sees it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pretrain.data.batch import Batch
from pretrain.data.batch_schedule import BatchSchedule
from pretrain.data.collate import Collator
from pretrain.data.dataloader import WorkerStatus
from pretrain.data.pair_batches import Pairs, ValidationBatches, training_steps
from pretrain.engine.training_task import Evaluation, TrainingTask
from pretrain.objective.pretraining_pass import PretrainingPass
from pretrain.objective.validation import describe_validation, validate


@dataclass
class PretrainingTask(TrainingTask):
    """Pretraining of one model.

    Attributes:
        pairs, collator, worker_status: the training pairs, and how and by which data workers they become batches.
        validation: batches of the validation pairs; of length 0 without them.
        frequent_word: id of the most frequent token, whose share is the chance level of masked tokens.
    """

    schedule: BatchSchedule
    peak_lr: float
    save_every: int
    pretraining_pass: PretrainingPass
    pairs: Pairs
    collator: Collator
    worker_status: WorkerStatus
    validation: ValidationBatches
    frequent_word: int
    device: torch.device

    unit = "pairs"
    shorter_validation = "--validation_pairs takes fewer pairs, --save_every validates less often"

    def batches(self) -> Iterator[list[Batch]]:
        return training_steps(
            self.pairs, self.collator, self.schedule, self.worker_status, pin=self.device.type == "cuda"
        )

    def denominators(self, parts: list[Batch]) -> list[int]:
        """Number of predicted tokens, predicted regions, and pairs."""
        return [
            sum(part.predicted_tokens for part in parts),
            sum(part.predicted_regions for part in parts),
            sum(map(len, parts)),
        ]

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return self.pretraining_pass.metrics(sums)

    def describe(self, metrics: dict) -> str:
        return self.pretraining_pass.objective.describe(metrics)

    def samples_before(self, step: int) -> int:
        return self.schedule.samples_before(step)

    def evaluate(self, done: int) -> Evaluation | None:
        if not len(self.validation):
            return None
        scores = validate(self.pretraining_pass, self.validation, self.device, self.frequent_word)
        return Evaluation(scores, describe_validation(self.pretraining_pass.objective.terms, scores), -scores["loss"])

    def state(self, done: int) -> dict:
        return {"stages": [stage.to_dict() for stage in self.schedule.stages_at(done)]}
