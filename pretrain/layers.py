"""The blocks of the two-stream model: embeddings, a transformer layer, a co-attention connection, a pooler.

Every block keeps BERT's arrangement: a sublayer, dropout, the residual, then LayerNorm (epsilon 1e-12).
Queries, keys and values of one input are one matrix, so that they cost one multiplication.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.attention import attend, split_heads
from pretrain.config import ModelConfig
from pretrain.packing import Layout

EPSILON = 1e-12
LOCATION_SIZE = 5  # x1, y1, x2, y2 as shares of width and height, and the share of the area


class Norm(nn.LayerNorm):
    """LayerNorm with BERT's epsilon. Works and answers in float32 at the least, under autocast on any device."""

    def __init__(self, size: int):
        super().__init__(size, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.dtype == torch.float64 else x.float())


class TextEmbedding(nn.Module):
    """Words, positions and segments, and a task token after [CLS] where the model has them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.task = nn.Embedding(config.task_tokens, config.hidden_size) if config.task_tokens else None
        self.norm = Norm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, segment_ids: Tensor | None, task_ids: Tensor | None) -> Tensor:
        """int64 (B, L), (B, L) or None for segment 0, (B,) or None -> (B, L or L + 1, h).

        The task token has no position or segment of its own; the words keep theirs.
        """
        positions = self.position.weight[: input_ids.shape[1]]
        segments = self.segment.weight[0] if segment_ids is None else self.segment(segment_ids)
        x = self.word(input_ids) + positions + segments
        if task_ids is not None:
            x = torch.cat([x[:, :1], self.task(task_ids)[:, None], x[:, 1:]], 1)
        return self.dropout(self.norm(x))


class ImageEmbedding(nn.Module):
    """Region features and locations, each through a matrix of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.feature = nn.Linear(config.v_feature_size, config.v_hidden_size)
        self.location = nn.Linear(LOCATION_SIZE, config.v_hidden_size)
        self.norm = Norm(config.v_hidden_size)
        self.dropout = nn.Dropout(config.v_hidden_dropout_prob)

    def forward(self, features: Tensor, locations: Tensor) -> Tensor:
        """(B, R, D), (B, R, 5) -> (B, R, h)."""
        return self.dropout(self.norm(self.feature(features) + self.location(locations)))


class FeedForward(nn.Module):
    """Linear, GELU, Linear, with the residual around them."""

    def __init__(self, size: int, inner: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(size, inner)
        self.down = nn.Linear(inner, size)
        self.norm = Norm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Layer(nn.Module):
    """A transformer layer of one stream."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.norm = Norm(size)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(size, inner, dropout)

    def forward(self, x: Tensor, layout: Layout, maps: list | None = None) -> Tensor:
        """(n, size), or (B, L, size) with padding -> the same."""
        q, k, v = _by_head(self.query_key_value(x), layout, self.heads)
        context = attend(q, k, v, layout.mask, self.attention_dropout if self.training else 0.0, maps)
        return self.feed_forward(self.norm(x + self.dropout(self.output(layout.pack(context)))))


def _by_head(query_key_value: Tensor, layout: Layout, heads: int) -> Iterator[Tensor]:
    """Queries, keys and values of all positions, padding too: (B, heads, L, size / heads) each."""
    return (split_heads(part, heads) for part in layout.pad(query_key_value).chunk(3, -1))


class Connection(nn.Module):
    """A co-attention layer: the regions look at the words while the words look at the regions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size, text, image = config.bi_hidden_size, config.hidden_size, config.v_hidden_size
        self.heads = config.bi_num_attention_heads
        self.image_attention_dropout = config.v_attention_probs_dropout_prob
        self.text_attention_dropout = config.attention_probs_dropout_prob
        self.image_query_key_value = nn.Linear(image, 3 * size)
        self.text_query_key_value = nn.Linear(text, 3 * size)
        self.image_output = nn.Linear(size, image)
        self.text_output = nn.Linear(size, text)
        self.image_norm = Norm(image)
        self.text_norm = Norm(text)
        self.image_dropout = nn.Dropout(config.v_hidden_dropout_prob)
        self.text_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.image_feed_forward = FeedForward(image, config.v_intermediate_size, config.v_hidden_dropout_prob)
        self.text_feed_forward = FeedForward(text, config.intermediate_size, config.hidden_dropout_prob)

    def forward(
        self,
        text: Tensor,
        text_layout: Layout,
        image: Tensor,
        image_layout: Layout,
        text_maps: list | None = None,
        image_maps: list | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text (B, L, h_t) and image (B, R, h_v), as they are laid out -> the new text and image, laid out the same.

        text_maps takes the words' attention to regions (B, heads, L, R), image_maps the reverse.
        """
        q1, k1, v1 = _by_head(self.image_query_key_value(image), image_layout, self.heads)
        q2, k2, v2 = _by_head(self.text_query_key_value(text), text_layout, self.heads)
        # As published: what the keys belong to names the dropout.
        text_dropout = self.text_attention_dropout if self.training else 0.0
        image_dropout = self.image_attention_dropout if self.training else 0.0
        for_image = image_layout.pack(attend(q1, k2, v2, text_layout.mask, text_dropout, image_maps))
        for_text = text_layout.pack(attend(q2, k1, v1, image_layout.mask, image_dropout, text_maps))
        image = self.image_norm(image + self.image_dropout(self.image_output(for_image)))
        text = self.text_norm(text + self.text_dropout(self.text_output(for_text)))
        return self.text_feed_forward(text), self.image_feed_forward(image)


class Pooler(nn.Module):
    """The first position of a stream through Linear and ReLU: (B, L, h) -> (B, bi_hidden_size)."""

    def __init__(self, size: int, pooled: int):
        super().__init__()
        self.dense = nn.Linear(size, pooled)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x[:, 0]))
