"""Object-detection models of transformers; the features of a box are the embedding of its query.

The class distribution of a query has the background as class 0: the "no object" class of models with a softmax (DETR),
and the remaining probability of models with a sigmoid per class.
"""

import numpy as np
import torch
from torch import Tensor

from shards.common.box_iou import iou
from shards.common.errors import UserError
from shards.common.model_hub import load_failure, only_local
from shards.detection.base import refuse_flags
from shards.detection.batched import BatchedDetector, NetworkRegions, read_class_names

NEAR = 1e-6  # minimum of 1 - IoU and of objectness, to avoid divisions by 0
REGIONS = 100  # default maximum number of regions per image


class TransformersDetector(BatchedDetector):
    version = 2  # version 1 used the features of the single query with the largest overlap for a given box

    def __init__(self, config):
        from transformers import AutoImageProcessor, AutoModelForObjectDetection  # take seconds to import

        super().__init__(config)
        for flag in ("weights", "detector_config"):
            if getattr(config, flag):
                raise UserError(f"--{flag} {getattr(config, flag)}: only for --detector x152 or backbone; remove it")
        refuse_flags(config, config.detector, "proposals", "grid", "short_side")
        self.name = config.detector
        local = {"local_files_only": only_local(self.name)}
        try:
            self.model = AutoModelForObjectDetection.from_pretrained(self.name, **local).eval().to(self.device)
            self.processor = AutoImageProcessor.from_pretrained(self.name, **local)
        except (OSError, ValueError, ImportError) as error:
            kinds = "pixels, x152, backbone, or an object-detection model of transformers"
            raise UserError(f"--detector {self.name}: should be {kinds} ({load_failure(error, self.name)})") from None
        labels = self.model.config.id2label
        self.num_classes = len(labels) + 1
        self.class_names = ["background", *(str(labels[number]) for number in sorted(labels))]
        if config.class_names:
            self.class_names = read_class_names(config.class_names, self.num_classes)

    def detect_batch(self, images: list[np.ndarray]) -> list[NetworkRegions]:
        return [self._best(*of_image) for of_image in self._queries(images)]

    def describe_batch(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[NetworkRegions]:
        """Uses the weighted mean of the queries' features and distributions for a given box (`query_weights`)."""
        found = []
        for given, (own, features, distribution) in zip(boxes, self._queries(images), strict=True):
            weights = query_weights(given, own.cpu().numpy(), 1 - distribution[:, 0].cpu().numpy())
            weights = torch.from_numpy(weights).to(features)
            found.append(NetworkRegions(torch.from_numpy(given), weights @ features, weights @ distribution))
        return found

    def _queries(self, images: list[np.ndarray]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(boxes in pixels, embeddings, distributions) of all queries, per image."""
        inputs = self.processor(images=images, input_data_format="channels_last", return_tensors="pt").to(self.device)
        out = self.model(**inputs)
        count = out.logits.shape[1]
        features = out.last_hidden_state[:, -count:]  # in some models after those of patches
        sizes = torch.tensor([image.shape[1::-1] for image in images], device=self.device).repeat(1, 2)
        centre, half = out.pred_boxes.float().split(2, -1)
        boxes = torch.cat([centre - half / 2, centre + half / 2], -1).clamp(0, 1) * sizes[:, None]
        return list(zip(boxes, features.float(), self._distribution(out.logits.float()), strict=True))

    def _distribution(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] == self.num_classes:
            return logits.softmax(-1).roll(1, -1)
        scores = logits.sigmoid()
        scores = scores / scores.sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([(1 - scores.sum(-1, keepdim=True)).clamp(min=0), scores], -1)

    def _best(self, boxes: Tensor, features: Tensor, distribution: Tensor) -> NetworkRegions:
        scores = distribution[:, 1:].max(1).values
        order = scores.argsort(descending=True, stable=True)[: self.config.max_regions or REGIONS]
        return NetworkRegions(boxes[order], features[order], distribution[order])


def query_weights(given: np.ndarray, own: np.ndarray, objectness: np.ndarray) -> np.ndarray:
    """Weights of the queries in the features of given boxes: interpolation between queries by overlap.

    A weight is the query's probability of an object times the square of IoU / (1 - IoU). A given box that equals the
    box of a query gets the features of that query, others get a mixture, and different boxes get different features. If
    no query overlaps a box, the one with the nearest centre is used. Changing them changes the features: increase the
    detector's `version`.

    Args:
        given: (n, 4), given boxes in pixels.
        own: (queries, 4), boxes of the queries.
        objectness: (queries,), 1 - probability of the background.

    Returns:
        (n, queries), rows that sum to 1.
    """
    overlaps = iou(given, own).astype(np.float64)
    weights = (overlaps / np.maximum(1 - overlaps, NEAR)) ** 2 * np.maximum(objectness, NEAR)
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (given, own)]
    nearest = ((centres[0][:, None] - centres[1]) ** 2).sum(-1).argmin(1)
    alone = overlaps.max(1) == 0
    weights[alone, nearest[alone]] = 1
    return weights / weights.sum(1, keepdims=True)


DETECTOR = TransformersDetector
