"""Embeddings of images, texts and image-text pairs by a trained model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.config import ModelFlags
from finetune.data.task_collate import TaskBatch
from finetune.heads.inputs import TaskInputs
from finetune.inference.argument_errors import current_arguments, naming_arguments
from finetune.inference.predictor import LazyPredictor
from finetune.inference.pretrained_methods import PretrainedMethods
from finetune.inference.request import ImageLike, check_text, read_image, sample_of
from finetune.task_types.base import Task
from finetune.tasks import find_task
from pretrain.data.batch import Batch
from pretrain.data.collate import Limits, check_sample, stack
from pretrain.models.contrastive import masked_mean
from pretrain.models.packing import SequenceLayout
from pretrain.models.vilbert import StreamStates, TwoStream
from shards.common.counted import counted
from shards.common.errors import UserError
from shards.storage.sample import Sample

Item = TypeVar("Item")


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of n inputs.

    Attributes:
        pooled: float32 (n, size), one vector per input.
        parts: n arrays float32 (count, hidden_size), one vector per token or per image row (row 0: the global image
            feature, then the regions).
    """

    pooled: npt.NDArray[np.float32]
    parts: list[npt.NDArray[np.float32]]


class Embedder(PretrainedMethods):
    """Embeddings of images and texts, each alone or as pairs.

    Alone, a text or an image is encoded by its own stream up to the first co-attention layer. A model with a
    contrastive head (`pretrain.run --contrastive`) maps both to vectors of length 1 in one space, where their product
    is the cosine similarity of text and image (`comparable` is true). Without such a head, `pooled` is the mean of the
    states, and texts and images have spaces of their own. Pairs are encoded by the whole model.

    Args:
        run: a run directory of pretrain.run, finetune.mt or finetune.st, a file of published weights, or hf:OWNER/NAME.
        task: the task whose token precedes the text, in a model with task tokens; by default the first task that the
            run was trained on.
        batch_size: inputs per forward pass.
        options: as finetune.predict.Predictor takes them: data, region_shards, config, tokenizer, precision, device.

    Attributes:
        run: the local path of the run or weights.

    Raises:
        UserError: something does not exist, cannot be read or does not fit; the message names the argument.
    """

    def __init__(self, run: str | Path, *, task: str | None = None, batch_size: int = 64, **options: Any):
        with naming_arguments():
            self._model = LazyPredictor(ModelFlags(run=str(run), **current_arguments(options)))
            self._task = find_task(task) if task else None
        self.run = self._model.run
        self.batch_size = batch_size

    @property
    def comparable(self) -> bool:
        """Whether pooled embeddings of texts and of images are in one space."""
        return self._encoder.contrast is not None

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts.

        Args:
            texts: at most 10,000 characters each; tokens beyond the maximum of the model are cut.

        Raises:
            UserError: a text is empty or too long, or there is none.
        """
        with naming_arguments():
            return self._all(self._text(self._batch([], ids)) for ids in self._encoded(texts))

    def images(self, images: Sequence[ImageLike]) -> Embeddings:
        """Embeddings of images, in which the run's detector finds regions.

        Args:
            images: paths, bytes of files, PIL images, or arrays as Predictor takes them.

        Raises:
            UserError: an image cannot be read or decoded, or there is none.
        """
        with naming_arguments():
            return self.regions([sample for part in _parts(images, self.batch_size) for sample in self._detected(part)])

    def regions(self, samples: Sequence[Sample]) -> Embeddings:
        """Embeddings of images whose regions are known.

        Args:
            samples: of region shards, from the detector whose regions the model was trained on.

        Raises:
            UserError: features have another size than the model's, values are not finite, or there is no sample.
        """
        with naming_arguments():
            return self._all(self._image(self._batch(part)) for part in _parts(samples, self.batch_size))

    def pairs(self, texts: Sequence[str], images: Sequence[ImageLike]) -> tuple[Embeddings, Embeddings]:
        """Embeddings of pairs, the text and the image of each after co-attention with the other.

        Args:
            texts: see `texts`.
            images: as many as texts; see `images`.

        Returns:
            The embeddings of the texts, and those of the images; `pooled` (n, bi_hidden_size) is what the heads take.

        Raises:
            UserError: there are not as many texts as images, or as for `texts` and `images`.
        """
        if len(texts) != len(images):
            unequal = f"{counted(len(texts), 'text')} and {counted(len(images), 'image')}"
            raise UserError(f"pairs: {unequal}; should be as many of both")
        with naming_arguments():
            samples = [sample for part in _parts(images, self.batch_size) for sample in self._detected(part)]
            both = [
                self._pair(self._batch(part, ids))
                for part, ids in zip(_parts(samples, self.batch_size), self._encoded(texts), strict=True)
            ]
        return self._all(text for text, _ in both), self._all(image for _, image in both)

    @property
    def _encoder(self) -> TwoStream:
        return self._model.model.encoder

    @property
    def _token(self) -> int | None:
        tasks: list[Task] = [self._task] if self._task else self._model.source.tasks
        return self._model.source.task_token(tasks[0]) if tasks else None

    def _encoded(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """Token ids of the texts, in batches."""
        for text in texts:
            check_text(text)
        longest = self._model.source.sizes.max_position_embeddings
        for part in _parts(texts, self.batch_size):
            yield self._model.source.tokenizer.encode(list(part), longest)

    def _detected(self, images: Sequence[ImageLike]) -> list[Sample]:
        pixels = [read_image(image) for image in images]
        found = self._model.detector.detect(pixels)
        return [sample_of(f"image {n}", *one) for n, one in enumerate(zip(pixels, found, strict=True))]

    def _batch(self, samples: Sequence[Sample], ids: Sequence[list[int]] = ()) -> Batch:
        """A batch of images, texts or pairs; the half that is missing is empty."""
        size = len(samples) or len(ids)
        limits = Limits(0, max((len(s.features) for s in samples), default=1), self._model.source.sizes.v_feature_size)
        for sample in samples:
            check_sample(sample, limits)
        none = np.zeros(size, np.int64)
        empty = Sample("", np.zeros((0, limits.feature_size), np.float16), np.zeros((0, 4), np.float32))
        samples, ids = list(samples) or [empty] * size, list(ids) or [[0]] * size
        return stack(samples, ids, none, none, limits).to(self._model.device)

    def _inputs(self, batch: Batch) -> TaskInputs:
        return TaskBatch(batch, None, None, len(batch)).inputs(self._token, self._model.precision.dtype)

    @torch.no_grad()
    def _text(self, batch: Batch) -> Embeddings:
        with self._model.precision.autocast():
            states, layout = self._model.model.encode_text_alone(self._inputs(batch))
            return _alone(states, layout, head.embed_text if (head := self._encoder.contrast) else masked_mean)

    @torch.no_grad()
    def _image(self, batch: Batch) -> Embeddings:
        with self._model.precision.autocast():
            states, layout = self._model.model.encode_image_alone(self._inputs(batch))
            return _alone(states, layout, head.embed_image if (head := self._encoder.contrast) else masked_mean)

    @torch.no_grad()
    def _pair(self, batch: Batch) -> tuple[Embeddings, Embeddings]:
        with self._model.precision.autocast():
            inputs, model = self._inputs(batch), self._model.model
            stream_states = StreamStates(*model.encode_text_alone(inputs), *model.encode_image_alone(inputs), None)
            encoded = self._encoder.finish(stream_states)
        return (
            _embeddings(encoded.pooled_text, encoded.text, stream_states.text_layout.mask),
            _embeddings(encoded.pooled_image, encoded.image, stream_states.image_layout.mask),
        )

    @staticmethod
    def _all(parts: Iterable[Embeddings]) -> Embeddings:
        parts = list(parts)
        if not parts:
            raise UserError("nothing to embed: no text and no image is given")
        return Embeddings(np.concatenate([part.pooled for part in parts]), [p for part in parts for p in part.parts])


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _alone(states: Tensor, layout: SequenceLayout, pool: Callable[[Tensor, Tensor], Tensor]) -> Embeddings:
    """The embeddings of one stream. pool: from states (B, L, h) and mask (B, L) to (B, size)."""
    padded = layout.pad(states)
    return _embeddings(pool(padded, layout.mask), padded, layout.mask)


def _embeddings(pooled: Tensor, states: Tensor, mask: Tensor) -> Embeddings:
    """From pooled (B, size), states (B, L, hidden_size) and bool mask (B, L)."""
    rows = [row[real].float().cpu().numpy() for row, real in zip(states, mask, strict=True)]
    return Embeddings(pooled.float().cpu().numpy(), rows)
