"""The interface of a head: everything that depends on the kind of answer a task wants."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from finetune.annotations.answers import AnswerVocabulary
from finetune.annotations.example import Box, Example
from finetune.heads.inputs import TaskInputs
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import Encoded, TwoStream
from shards.storage.sample import Sample


@dataclass(frozen=True)
class Scene:
    """What the choices of one example can refer to.

    Attributes:
        images: names of its images.
        regions: float (n, 4), boxes of the first image's regions as fractions of its sides.
        size: (width, height) of the first image in pixels.
        candidates: candidate boxes in pixels.
    """

    images: Sequence[str]
    regions: np.ndarray
    size: tuple[float, float]
    candidates: Sequence[Box] = ()


class ImageSamples(Protocol):
    """The regions of images by their ids, such as those of a data set, or a dict."""

    def __getitem__(self, image: str, /) -> Sample: ...


# Names of earlier versions, which nothing uses any more.
RENAMED = {"best": "decode", "official": "to_predictions", "images": "images_per_example"}


@dataclass(frozen=True)
class Head(ABC):
    """A kind of task head. Subclasses are all that the rest of the package needs to know about a kind of answer.

    A head has no weights: data workers take targets from it, and requests are checked by it, before there is a model.
    Its weights are the layer `layer_name` of TaskModel; tasks whose heads have the same `layer_name` share it.

    Attributes:
        name: name in flags, run directories and --task_token head.
    """

    name: str

    images_per_example: ClassVar[int] = 1
    has_vocabulary: ClassVar[bool] = False  # whether it chooses from an answer vocabulary, see AnsweringTask
    has_candidates: ClassVar[bool] = False  # whether examples have candidate boxes to choose from
    finds_regions: ClassVar[bool] = False  # whether it chooses among the regions of the image
    # Whether it ranks all images of a split for every text. Its examples are pairs of a text and its image, its
    # predictions are a matrix of scores (see inference.predictions), and training draws negatives (see OPTIONS).
    ranks_images: ClassVar[bool] = False
    input_label: ClassVar[str] = "Text"  # what the text of an example is, for pages
    input_example: ClassVar[str] = ""  # a text of this kind about the miniature world

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a class, perhaps of another package, that defines something under a name that is never used."""
        super().__init_subclass__(**kwargs)
        for former, name in RENAMED.items():
            if hasattr(cls, former):
                raise TypeError(f"{cls.__name__}.{former}: is now {name}, see finetune.heads.base.Head")

    @property
    def layer_name(self) -> str:
        return self.name

    @property
    def layer_settings(self) -> tuple[object, ...]:
        """What else the layer depends on; heads that share a layer have the same."""
        return ()

    @abstractmethod
    def layer(self, sizes: ModelConfig, answers: int) -> nn.Module:
        """A new layer. answers: size of the answer vocabulary; 0 for heads without one."""

    def make_choices_rare(self, layer: nn.Module) -> None:  # noqa: B027 -- most heads have nothing to change
        """Sets the biases of a new layer so that every choice has a small probability at first, instead of one half.

        For heads with a sigmoid for each of many choices, see --rare_choices. With a probability of one half, the first
        steps lower all logits, which the layers below do faster than the biases: within 20 steps, the streams of a
        small model hardly differ between inputs, and it gives the same answer to every question (docs/results.md).
        """

    def logits(self, layer: nn.Module, encoder: TwoStream, encoded: Encoded, inputs: TaskInputs) -> Tensor:
        """The scores before any sigmoid or softmax.

        Args:
            layer: the layer of this head.
            encoder: the two-stream model.
            encoded: its hidden states for the inputs.
            inputs: a batch.

        Returns:
            (examples, choices), unless a subclass documents another shape.
        """
        scores: Tensor = layer(encoder.fuse(encoded))
        return scores

    @abstractmethod
    def targets(
        self, examples: Sequence[Example], samples: Sequence[Sample], rows: int, vocabulary: AnswerVocabulary | None
    ) -> Tensor | None:
        """The targets of a batch, as `losses` takes them; None if it needs none.

        Args:
            examples: the examples of the batch, all with a target.
            samples: regions of their images, in order of the batch rows.
            rows: number of rows of the image stream that a pointing head scores, with padding.
            vocabulary: of a head with a vocabulary.
        """

    @abstractmethod
    def losses(self, logits: Tensor, targets: Any) -> Tensor:
        """The loss of each example of a batch; the training loss is their mean.

        Args:
            logits: result of `logits`.
            targets: result of `targets`; subclasses state its type, a tensor or None.

        Returns:
            float (examples,).
        """

    def batch_losses(self, encoder: TwoStream, encoded: Encoded, targets: Any) -> Tensor | None:
        """Losses that compare the examples of a batch with each other. Arguments as for `logits` and `losses`.

        Returns:
            float (examples,), which TaskPass adds to `losses`, times --contrastive; None if there are none.
        """
        return None

    @abstractmethod
    def training_scores(self, logits: Tensor, targets: Any) -> Tensor:
        """The training accuracy of the choices with the highest logits: float (examples,), between 0 and 1."""

    def prediction_shape(self, regions: int) -> tuple[int, ...]:
        """The shape of the prediction of one example in `decode`. regions: maximum number of regions per image."""
        return (1,)

    def decode(
        self, logits: Tensor, boxes: np.ndarray, examples: Sequence[Example], regions: ImageSamples
    ) -> np.ndarray:
        """The predictions of a batch as numbers, which several ranks can add up; here the number of the best choice.

        Args:
            logits: on the CPU.
            boxes: (examples, R, 4), the regions of the images as fractions of their sides.
            examples: the examples of the batch.
            regions: of their images.

        Returns:
            float64 (examples, *prediction_shape), or less than prediction_shape in any dimension but the first: the
            rest is filled with zeros. Predicted boxes are in pixels of the annotations.
        """
        return logits.argmax(1, keepdim=True).double().numpy()

    def to_predictions(self, numbers: np.ndarray, vocabulary: AnswerVocabulary | None) -> Sequence[Any] | np.ndarray:
        """The predictions in the form that `Task.scores` takes; here int (n,), the numbers of the choices.

        Args:
            numbers: results of `decode` for all n examples.
            vocabulary: of a head with a vocabulary.
        """
        return numbers[:, 0].astype(np.int64)

    @abstractmethod
    def choices(self, scene: Scene, vocabulary: AnswerVocabulary | None) -> tuple[Sequence[str], Sequence[Box]]:
        """The choices of an example, in the order of its logits.

        Args:
            scene: what they can refer to.
            vocabulary: of a head with a vocabulary.

        Returns:
            Their names, and their boxes in pixels; no boxes if the choices are not places in an image.
        """

    def confidence(self, logits: Tensor) -> Tensor:
        """The confidence of each choice of one example, here a sigmoid per choice, as in training.

        Args:
            logits: (choices,).

        Returns:
            (choices,), between 0 and 1.
        """
        return logits.sigmoid()

    @abstractmethod
    def expected(self, example: Example) -> tuple[str, Box | None]:
        """The ground truth of an example, to be shown on pages.

        Returns:
            Text, and a box in pixels of the annotations or None.
        """
