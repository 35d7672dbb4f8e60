"""The two-stream model with task heads (paper, section 3.2 and table 8)."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from finetune.heads.answer_head import AnswerHead
from finetune.heads.base import Head
from finetune.heads.classification_head import ClassificationHead, PairClassificationHead
from finetune.heads.grounding_head import GroundingHead
from finetune.heads.inputs import TaskInputs
from finetune.heads.retrieval_head import RetrievalHead
from pretrain.models.dropout import number_sites
from pretrain.models.model_config import ModelConfig
from pretrain.models.packing import SequenceLayout
from pretrain.models.vilbert import AttentionMaps, Encoded, TwoStream, initialise
from shards.common.errors import UserError

# The paper's heads without an answer vocabulary, whose layers every model has, in the order of the stored weights.
PAPER_HEADS = (
    RetrievalHead(),
    GroundingHead(),
    PairClassificationHead("nlvr2", ("False", "True")),
    ClassificationHead("entailment", ("contradiction", "neutral", "entailment")),
)


class TaskModel(nn.Module):
    """The two-stream model with task heads.

    Layers are shared as in the paper: by VQA and Visual Genome QA, by the two retrieval tasks, and by all pointing
    tasks, whether they choose among regions or among candidate boxes.

    answers: heads with an answer vocabulary and their numbers of answers, such as {"vqa": 3129, "gqa": 1533}; heads:
    heads of the tasks in addition to the paper's.
    """

    def __init__(self, config: ModelConfig, answers: Mapping[str, int], heads: Iterable[Head] = ()):
        super().__init__()
        self.encoder = TwoStream(config)
        heads = tuple(heads)
        known = {head.name: head for head in heads if head.has_vocabulary}
        layers = {name: known.get(name, AnswerHead(name)).layer(config, count) for name, count in answers.items()}
        settings = {head.layer_name: head.layer_settings for head in PAPER_HEADS}
        for head in (*PAPER_HEADS, *heads):
            if settings.setdefault(head.layer_name, head.layer_settings) != head.layer_settings:
                raise UserError(
                    f"two tasks have the head {head.name} with different labels ({', '.join(head.layer_settings)}, and "
                    f"{', '.join(settings[head.layer_name])}); rename it in one of them"
                )
            if head.layer_name not in layers and not head.has_vocabulary:
                layers[head.layer_name] = head.layer(config, 0)
        self.heads = nn.ModuleDict(layers)
        number_sites(self)
        initialise(self.heads, config.initializer_range)

    def forward(self, inputs: TaskInputs, head: Head) -> Tensor:
        """The logits of a head, see Head.logits."""
        return self.logits(self.encode(inputs), inputs, head)

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

    def encode_text_alone(self, inputs: TaskInputs) -> tuple[Tensor, SequenceLayout]:
        """The text stream before the first co-attention layer; see TwoStream."""
        return self.encoder.encode_text_alone(
            inputs.input_ids, inputs.text_mask, inputs.text_count, task_ids=inputs.task_ids
        )

    def encode_image_alone(self, inputs: TaskInputs) -> tuple[Tensor, SequenceLayout]:
        """The image stream before the first co-attention layer; see TwoStream."""
        return self.encoder.encode_image_alone(inputs.features, inputs.locations, inputs.image_mask, inputs.image_count)

    def logits(self, encoded: Encoded, inputs: TaskInputs | None, head: Head) -> Tensor:
        """As `forward`, from encoded inputs; a head that ranks images does not need the inputs."""
        return head.logits(self.heads[head.layer_name], self.encoder, encoded, inputs)
