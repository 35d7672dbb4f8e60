"""The two-stream model (ViLBERT, as configured by 12-in-1): text stream, image stream, co-attention layers.

The model does not depend on tasks, devices or ranks; heads are applied to the output of `TwoStream.forward`.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.models.contrastive import ContrastiveHead
from pretrain.models.dropout import IMAGE, POOLED, TEXT, Dropout, fresh_keys, number_sites, position_keys
from pretrain.models.layers import CoAttentionLayer, ImageEmbedding, Layer, Pooler, TextEmbedding
from pretrain.models.model_config import ModelConfig
from pretrain.models.packing import SequenceLayout, lay_out


@dataclass
class AttentionMaps:
    """Attention probabilities per layer; each tensor is (B, heads, query positions, key positions)."""

    text: list[Tensor] = field(default_factory=list)
    image: list[Tensor] = field(default_factory=list)
    text_over_image: list[Tensor] = field(default_factory=list)
    image_over_text: list[Tensor] = field(default_factory=list)


@dataclass
class Encoded:
    """Output of the model.

    Attributes:
        text, image: final hidden states, (B, L, h_t) and (B, R, h_v).
        pooled_text, pooled_image: (B, bi_hidden_size).
        image_keys, pooled_keys: int64 (B, R) and (B,), dropout keys for the heads; None without dropout.
        stream_states: hidden states before the first co-attention layer; None in a model without a contrastive head.
    """

    text: Tensor
    image: Tensor
    pooled_text: Tensor
    pooled_image: Tensor
    image_keys: Tensor | None = None
    pooled_keys: Tensor | None = None
    stream_states: "StreamStates | None" = None


@dataclass
class StreamStates:
    """Hidden states of both streams before the first co-attention layer; each depends on its own input only.

    Attributes:
        text, image: packed or padded, as in their layouts.
        sample_keys: int64 (B,), dropout keys; None without dropout.
    """

    text: Tensor
    text_layout: SequenceLayout
    image: Tensor
    image_layout: SequenceLayout
    sample_keys: Tensor | None

    def recombined(self, texts: Tensor, images: Tensor, sample_keys: Tensor) -> "StreamStates":
        """Forms other pairs of the same texts and images.

        Args:
            texts, images: int64 (n,), batch indices.
            sample_keys: int64 (n,), dropout keys of the new pairs; ignored without dropout.
        """
        if self.sample_keys is None:
            sample_keys = None
        text, text_layout = _selected_sequences(self.text, self.text_layout, texts, sample_keys, TEXT)
        image, image_layout = _selected_sequences(self.image, self.image_layout, images, sample_keys, IMAGE)
        return StreamStates(text, text_layout, image, image_layout, sample_keys)


def _selected_sequences(states: Tensor, layout: SequenceLayout, rows: Tensor, sample_keys: Tensor | None, kind: int):
    """Selects sequences of a batch; returns their states and layout, packed on a CPU, where counting is free."""
    mask = layout.mask[rows]
    count = int(mask.sum()) if mask.device.type == "cpu" else None
    chosen = lay_out(mask, count, _position_keys(sample_keys, kind, mask))
    return chosen.pack(layout.pad(states)[rows]), chosen


def block_order(config: ModelConfig) -> list[tuple[str, int]]:
    """The order of the blocks, as ("text" | "image" | "co-attention", number).

    Co-attention layer i follows the text layers below t_biattention_id[i] and the image layers below
    v_biattention_id[i]; the remaining layers of both streams follow the last co-attention layer.
    """
    order, text, image = [], 0, 0
    pairs = list(zip(config.t_biattention_id, config.v_biattention_id, strict=True))
    for number, (text_end, image_end) in enumerate(pairs):
        order += [("text", layer) for layer in range(text, text_end)]
        order += [("image", layer) for layer in range(image, image_end)]
        order.append(("co-attention", number))
        text, image = text_end, image_end
    order += [("text", layer) for layer in range(text, config.num_hidden_layers)]
    order += [("image", layer) for layer in range(image, config.v_num_hidden_layers)]
    return order


class TwoStream(nn.Module):
    """Encodes a text and the regions of an image jointly; see `forward`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        order = block_order(config)
        first = next((n for n, (kind, _) in enumerate(order) if kind == "co-attention"), len(order))
        self._lower, self._upper = order[:first], order[first:]  # blocks before the first co-attention layer, the rest
        self.activation_checkpointing = False  # in training; recomputes activations in the backward pass
        self.text_embedding = TextEmbedding(config)
        self.image_embedding = ImageEmbedding(config)
        self.text_layers = nn.ModuleList(
            Layer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_dropout_prob,
                config.attention_probs_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.image_layers = nn.ModuleList(
            Layer(
                config.v_hidden_size,
                config.v_num_attention_heads,
                config.v_intermediate_size,
                config.v_hidden_dropout_prob,
                config.v_attention_probs_dropout_prob,
            )
            for _ in range(config.v_num_hidden_layers)
        )
        self.connections = nn.ModuleList(CoAttentionLayer(config) for _ in config.v_biattention_id)
        self.text_pooler = Pooler(config.hidden_size, config.bi_hidden_size)
        self.image_pooler = Pooler(config.v_hidden_size, config.bi_hidden_size)
        self.fusion_dropout = Dropout(config.fusion_dropout_prob)
        self.contrast = ContrastiveHead(config) if config.contrastive_size else None
        number_sites(self)
        self._dropouts = [module for module in self.modules() if isinstance(module, Dropout)]
        initialise(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        features: Tensor,
        locations: Tensor,
        image_mask: Tensor,
        segment_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
        maps: AttentionMaps | None = None,
        text_count: int | None = None,
        image_count: int | None = None,
        sample_keys: Tensor | None = None,
        image_positions: Tensor | None = None,
    ) -> Encoded:
        """Encodes a batch.

        Args:
            input_ids: int64 (B, L).
            text_mask: bool (B, L), true for tokens, false for padding.
            features: (B, R, D), the image token in row 0, then the regions.
            locations: (B, R, 5).
            image_mask: bool (B, R), false for padding.
            segment_ids: int64 (B, L); None for segment 0.
            task_ids: int64 (B,); the task token makes the text one position longer.
            maps: collects the attention probabilities; fused attention is then not used.
            text_count, image_count: number of true elements of text_mask and image_mask, or more (see
                packing.lay_out). If given, padding is removed before the layers, and states at padding are undefined.
            sample_keys: int64 (B,), dropout keys; None to sample them from torch's generator.
            image_positions: int64 (R,), position numbers of the image rows for dropout; None for 0 to R - 1.
        """
        if not (self.training and any(dropout.p for dropout in self._dropouts)):
            sample_keys = None  # so that no position keys are computed
        elif sample_keys is None:
            sample_keys = fresh_keys(len(input_ids), input_ids.device)
        text, text_layout = self.encode_text_alone(
            input_ids,
            text_mask,
            text_count=text_count,
            segment_ids=segment_ids,
            task_ids=task_ids,
            maps=maps,
            sample_keys=sample_keys,
        )
        image, image_layout = self.encode_image_alone(
            features,
            locations,
            image_mask,
            image_count=image_count,
            maps=maps,
            sample_keys=sample_keys,
            image_positions=image_positions,
        )
        return self.finish(StreamStates(text, text_layout, image, image_layout, sample_keys), maps)

    def finish(self, stream_states: StreamStates, maps: AttentionMaps | None = None) -> Encoded:
        """Runs the first co-attention layer and all later blocks, and adds dropout keys for the heads.

        Args:
            stream_states: of `encode_text_alone` and `encode_image_alone`, of one batch.
            maps: collects the attention probabilities of these blocks.
        """
        text_layout, image_layout = stream_states.text_layout, stream_states.image_layout
        text, image = self._run(self._upper, maps, stream_states.text, text_layout, stream_states.image, image_layout)
        text, image = text_layout.pad(text), image_layout.pad(image)
        encoded = Encoded(text, image, self.text_pooler(text), self.image_pooler(image))
        if self.contrast is not None:
            encoded.stream_states = stream_states
        if (keys := stream_states.sample_keys) is not None:
            encoded.image_keys = image_layout.keys
            encoded.pooled_keys = position_keys(keys, POOLED, keys.new_zeros(1))[:, 0]
        return encoded

    def embed(self, stream_states: StreamStates) -> tuple[Tensor, Tensor]:
        """Unit-length text and image embeddings, float32 (B, contrastive_size) each (see contrastive.py).

        Only models with a contrastive head (contrastive_size above 0) have them.
        """
        layout = stream_states.image_layout
        images = self.contrast.embed_image(layout.pad(stream_states.image), layout.mask)
        return self._embed_texts(stream_states), images

    def embed_regions(self, stream_states: StreamStates) -> tuple[Tensor, Tensor]:
        """Unit-length embeddings of texts, (B, contrastive_size), and of all image rows, (B, R, contrastive_size)."""
        regions = self.contrast.embed_regions(stream_states.image_layout.pad(stream_states.image))
        return self._embed_texts(stream_states), regions

    def _embed_texts(self, stream_states: StreamStates) -> Tensor:
        layout = stream_states.text_layout
        return self.contrast.embed_text(layout.pad(stream_states.text), layout.mask)

    def encode_text_alone(
        self,
        input_ids: Tensor,
        text_mask: Tensor,
        text_count: int | None = None,
        segment_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
        maps: AttentionMaps | None = None,
        sample_keys: Tensor | None = None,
    ) -> tuple[Tensor, SequenceLayout]:
        """The text stream before the first co-attention layer, which is independent of the image.

        Args: those of `forward` with the same names.

        Returns:
            Hidden states, packed (tokens, h_t) or padded (B, L, h_t) as in their layout, and the layout.
        """
        if task_ids is not None:
            text_mask = torch.cat([text_mask[:, :1], text_mask], 1)
            text_count = text_count and text_count + len(task_ids)
        keys = _position_keys(sample_keys, TEXT, text_mask)
        text_layout = lay_out(text_mask, text_count, keys)
        text = text_layout.pack(self.text_embedding(input_ids, segment_ids, task_ids, keys))
        return self._run(self._lower, maps, text=text, text_layout=text_layout)[0], text_layout

    def encode_image_alone(
        self,
        features: Tensor,
        locations: Tensor,
        image_mask: Tensor,
        image_count: int | None = None,
        maps: AttentionMaps | None = None,
        sample_keys: Tensor | None = None,
        image_positions: Tensor | None = None,
    ) -> tuple[Tensor, SequenceLayout]:
        """The image stream before the first co-attention layer, which is independent of the text.

        Args: those of `forward` with the same names.

        Returns:
            Hidden states, packed (regions, h_v) or padded (B, R, h_v) as in their layout, and the layout.
        """
        keys = _position_keys(sample_keys, IMAGE, image_mask, image_positions)
        image_layout = lay_out(image_mask, image_count, keys)
        image = self.image_embedding(image_layout.pack(features), image_layout.pack(locations), image_layout.row_keys)
        return self._run(self._lower, maps, image=image, image_layout=image_layout)[1], image_layout

    def _run(
        self,
        blocks: list[tuple[str, int]],
        maps: AttentionMaps | None,
        text: Tensor | None = None,
        text_layout: SequenceLayout | None = None,
        image: Tensor | None = None,
        image_layout: SequenceLayout | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Runs blocks in order; those of a stream that is None are skipped."""
        keep = maps or AttentionMaps(None, None, None, None)
        # Counter-based dropout needs no generator state.
        checkpointed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        call = checkpointed if self.activation_checkpointing and self.training else _call
        for kind, number in blocks:
            if kind == "text" and text is not None:
                text = call(self.text_layers[number], text, text_layout, keep.text)
            elif kind == "image" and image is not None:
                image = call(self.image_layers[number], image, image_layout, keep.image)
            elif kind == "co-attention":
                text, image = call(
                    self.connections[number],
                    text,
                    text_layout,
                    image,
                    image_layout,
                    keep.text_over_image,
                    keep.image_over_text,
                )
        return text, image

    def fuse(self, encoded: Encoded) -> Tensor:
        """Fuses the two pooled vectors by product or sum (fusion_method), with dropout: (B, bi_hidden_size)."""
        if self.config.fusion_method == "sum":
            fused = encoded.pooled_text + encoded.pooled_image
        else:
            fused = encoded.pooled_text * encoded.pooled_image
        return self.fusion_dropout(fused, encoded.pooled_keys)


def _position_keys(sample_keys: Tensor | None, kind: int, mask: Tensor, positions: Tensor | None = None):
    """Dropout keys of the positions of a mask (B, L); None if sample_keys is."""
    if sample_keys is None:
        return None
    if positions is None:
        positions = torch.arange(mask.shape[1], device=mask.device)
    return position_keys(sample_keys, kind, positions)


def _call(function, *arguments):
    return function(*arguments)


def initialise(module: nn.Module, deviation: float) -> None:
    """Initialises weights from normal(0, deviation), biases with 0, LayerNorm with 1 and 0, and padding with 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
