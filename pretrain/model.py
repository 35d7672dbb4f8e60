"""The two-stream model (ViLBERT, as 12-in-1 configures it): a text stream, an image stream, co-attention between.

The model knows nothing of tasks, devices or ranks: heads take what `TwoStream.forward` returns.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config import ModelConfig
from pretrain.contrastive import ContrastiveHead
from pretrain.dropout import IMAGE, POOLED, TEXT, Dropout, fresh_keys, number_sites, position_keys
from pretrain.layers import Connection, ImageEmbedding, Layer, Pooler, TextEmbedding
from pretrain.packing import Layout, lay_out


@dataclass
class AttentionMaps:
    """Attention probabilities by layer; each tensor is (B, heads, looking positions, looked-at positions)."""

    text: list[Tensor] = field(default_factory=list)
    image: list[Tensor] = field(default_factory=list)
    text_over_image: list[Tensor] = field(default_factory=list)
    image_over_text: list[Tensor] = field(default_factory=list)


@dataclass
class Encoded:
    """text (B, L, h_t) and image (B, R, h_v): the last states; pooled_text and pooled_image (B, bi_hidden).

    image_keys int64 (B, R), pooled_keys int64 (B,): for dropout in what follows; None without dropout. begun: the
    states before the first connection, in a model with a contrastive head; None without.
    """

    text: Tensor
    image: Tensor
    pooled_text: Tensor
    pooled_image: Tensor
    image_keys: Tensor | None = None
    pooled_keys: Tensor | None = None
    begun: "Begun | None" = None


@dataclass
class Begun:
    """The states of both streams before the first connection, which neither stream has a part of the other in.

    text and image: as their layouts have them; sample_keys int64 (B,): of dropout, None without.
    """

    text: Tensor
    text_layout: Layout
    image: Tensor
    image_layout: Layout
    sample_keys: Tensor | None

    def recombined(self, texts: Tensor, images: Tensor, sample_keys: Tensor) -> "Begun":
        """Other pairs of the same texts and images. texts, images: rows, int64 (n,); sample_keys int64 (n,): of the new
        pairs, for dropout, where there is any."""
        if self.sample_keys is None:
            sample_keys = None
        text, text_layout = _rows_of(self.text, self.text_layout, texts, sample_keys, TEXT)
        image, image_layout = _rows_of(self.image, self.image_layout, images, sample_keys, IMAGE)
        return Begun(text, text_layout, image, image_layout, sample_keys)


def _rows_of(states: Tensor, layout: Layout, rows: Tensor, sample_keys: Tensor | None, kind: int):
    """Some sequences of a batch, and how they are laid out: packed on a CPU, which can count without waiting."""
    mask = layout.mask[rows]
    count = int(mask.sum()) if mask.device.type == "cpu" else None
    chosen = lay_out(mask, count, _position_keys(sample_keys, kind, mask))
    return chosen.pack(layout.pad(states)[rows]), chosen


def steps(config: ModelConfig) -> list[tuple[str, int]]:
    """The order of the blocks, as ("text" | "image" | "connection", number).

    Connection i comes after the text layers below t_biattention_id[i] and the image layers below
    v_biattention_id[i]; what is left of either stream comes after the last connection.
    """
    order, text, image = [], 0, 0
    pairs = list(zip(config.t_biattention_id, config.v_biattention_id, strict=True))
    for number, (text_end, image_end) in enumerate(pairs):
        order += [("text", layer) for layer in range(text, text_end)]
        order += [("image", layer) for layer in range(image, image_end)]
        order.append(("connection", number))
        text, image = text_end, image_end
    order += [("text", layer) for layer in range(text, config.num_hidden_layers)]
    order += [("image", layer) for layer in range(image, config.v_num_hidden_layers)]
    return order


class TwoStream(nn.Module):
    """Encodes a text and the regions of an image together; see `forward`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.steps = steps(config)
        self._first = next((n for n, (kind, _) in enumerate(self.steps) if kind == "connection"), len(self.steps))
        self.recompute = False  # true: in training, work activations out again in the backward pass to save memory
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
        self.connections = nn.ModuleList(Connection(config) for _ in config.v_biattention_id)
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
        """input_ids int64 (B, L), text_mask bool (B, L): true on words; features (B, R, D), locations (B, R, 5),
        image_mask bool (B, R), row 0 being the whole image; segment_ids int64 (B, L); task_ids int64 (B,).

        With task_ids the text is one position longer. `maps` collects exact attention maps, at the cost of
        fused attention. text_count and image_count: how many places of text_mask and image_mask are true, or more
        (see packing.lay_out); padding then costs next to nothing, and the states on it mean nothing. sample_keys int64
        (B,): what dropout follows from, drawn from torch's generator where they are None; image_positions int64 (R,):
        the numbers of the image's rows for dropout, 0 to R - 1 where they are None.
        """
        if not (self.training and any(dropout.p for dropout in self._dropouts)):
            sample_keys = None  # and no keys of positions are computed
        elif sample_keys is None:
            sample_keys = fresh_keys(len(input_ids), input_ids.device)
        text, text_layout = self.begin_text(input_ids, text_mask, text_count, segment_ids, task_ids, maps, sample_keys)
        image, image_layout = self.begin_image(
            features, locations, image_mask, image_count, maps, sample_keys, image_positions
        )
        return self.finish(Begun(text, text_layout, image, image_layout, sample_keys), maps)

    def finish(self, begun: Begun, maps: AttentionMaps | None = None) -> Encoded:
        """The first connection and all that follows."""
        encoded = self.join(begun.text, begun.text_layout, begun.image, begun.image_layout, maps)
        if self.contrast is not None:
            encoded.begun = begun
        if begun.sample_keys is not None:
            encoded.image_keys = begun.image_layout.keys
            encoded.pooled_keys = position_keys(begun.sample_keys, POOLED, begun.sample_keys.new_zeros(1))[:, 0]
        return encoded

    def embed(self, begun: Begun) -> tuple[Tensor, Tensor]:
        """float32 (B, contrastive_size) each, of length 1: embeddings of the texts and images (see contrastive.py)."""
        text_layout, image_layout = begun.text_layout, begun.image_layout
        texts = self.contrast.embed_text(text_layout.pad(begun.text), text_layout.mask)
        return texts, self.contrast.embed_image(image_layout.pad(begun.image), image_layout.mask)

    def begin_text(
        self, input_ids, text_mask, text_count=None, segment_ids=None, task_ids=None, maps=None, sample_keys=None
    ) -> tuple[Tensor, Layout]:
        """The text stream up to the first connection, which no image has a part in, and how it is laid out."""
        if task_ids is not None:
            text_mask = torch.cat([text_mask[:, :1], text_mask], 1)
            text_count = text_count and text_count + len(task_ids)
        keys = _position_keys(sample_keys, TEXT, text_mask)
        text_layout = lay_out(text_mask, text_count, keys)
        text = text_layout.pack(self.text_embedding(input_ids, segment_ids, task_ids, keys))
        return self._run(self.steps[: self._first], text, text_layout, None, None, maps)[0], text_layout

    def begin_image(
        self, features, locations, image_mask, image_count=None, maps=None, sample_keys=None, image_positions=None
    ) -> tuple[Tensor, Layout]:
        """The image stream up to the first connection, which no text has a part in, and how it is laid out."""
        keys = _position_keys(sample_keys, IMAGE, image_mask, image_positions)
        image_layout = lay_out(image_mask, image_count, keys)
        image = self.image_embedding(
            image_layout.pack(features), image_layout.pack(locations), image_layout.row_keys
        )
        return self._run(self.steps[: self._first], None, None, image, image_layout, maps)[1], image_layout

    def join(self, text: Tensor, text_layout: Layout, image: Tensor, image_layout: Layout, maps=None) -> Encoded:
        """The first connection and all that follows, from what the two streams begin with."""
        text, image = self._run(self.steps[self._first :], text, text_layout, image, image_layout, maps)
        text, image = text_layout.pad(text), image_layout.pad(image)
        return Encoded(text, image, self.text_pooler(text), self.image_pooler(image))

    def _run(self, steps, text, text_layout, image, image_layout, maps) -> tuple[Tensor, Tensor]:
        """Some blocks in their order; those of a stream that is None are left out."""
        keep = maps or AttentionMaps(None, None, None, None)
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # dropout has no generator
        call = again if self.recompute and self.training else _call
        for kind, number in steps:
            if kind == "text" and text is not None:
                text = call(self.text_layers[number], text, text_layout, keep.text)
            elif kind == "image" and image is not None:
                image = call(self.image_layers[number], image, image_layout, keep.image)
            elif kind == "connection":
                connection = self.connections[number]
                text, image = call(
                    connection, text, text_layout, image, image_layout, keep.text_over_image, keep.image_over_text
                )
        return text, image

    def fuse(self, encoded: Encoded) -> Tensor:
        """The two pooled vectors as one, (B, bi_hidden), with dropout."""
        if self.config.fusion_method == "sum":
            fused = encoded.pooled_text + encoded.pooled_image
        else:
            fused = encoded.pooled_text * encoded.pooled_image
        return self.fusion_dropout(fused, encoded.pooled_keys)


def _position_keys(sample_keys: Tensor | None, kind: int, mask: Tensor, positions: Tensor | None = None):
    """Dropout keys of the positions of a mask (B, L), None without keys of the samples."""
    if sample_keys is None:
        return None
    if positions is None:
        positions = torch.arange(mask.shape[1], device=mask.device)
    return position_keys(sample_keys, kind, positions)


def _call(function, *arguments):
    return function(*arguments)


def initialise(module: nn.Module, deviation: float) -> None:
    """Weights from normal(0, deviation), biases 0, LayerNorm 1 and 0; the padding word's embedding stays 0."""
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
