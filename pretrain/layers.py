"""The blocks of the two-stream model: embeddings, a transformer layer, a co-attention connection, a pooler.

Every block keeps BERT's arrangement: a sublayer, dropout, the residual, then LayerNorm (epsilon 1e-12).
Queries, keys and values of one input are one matrix, so that they cost one multiplication.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ops
from pretrain.attention import co_attention, self_attention
from pretrain.config import ModelConfig
from pretrain.dropout import Dropout
from pretrain.linear import Linear
from pretrain.packing import Layout

EPSILON = 1e-12
LOCATION_SIZE = 5  # x1, y1, x2, y2 as shares of width and height, and the share of the area


class Norm(nn.LayerNorm):
    """LayerNorm with BERT's epsilon, computed in float32 at least, under autocast on any device.

    narrow: what comes out has the type that autocast computes in, and not float32; the hidden states between the
    blocks then have half the bytes, and what follows them need not convert them.
    """

    def __init__(self, size: int):
        super().__init__(size, EPSILON)
        self.narrow = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> the same."""
        normed = super().forward(x if x.dtype == torch.float64 else x.float())
        return normed.to(self._output_type(x))

    def after(self, x: Tensor, residual: Tensor, dropout: Dropout, keys: Tensor | None) -> Tensor:
        """LayerNorm(dropout(x) + residual) in one pass. x, residual: (..., size); keys: int64, one for each row."""
        normed = ops.dropout_add_layer_norm(
            x.flatten(0, -2),
            residual.flatten(0, -2),
            self.weight,
            self.bias,
            keys,
            dropout.site,
            dropout.rate,
            self.eps,
            self._output_type(x),
        )
        return normed.view(x.shape)

    def _output_type(self, x: Tensor) -> torch.dtype:
        if x.dtype == torch.float64:
            return torch.float64
        if self.narrow and torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return torch.float32


def narrow_hidden_states(model: nn.Module) -> None:
    """Lets the LayerNorms of a model return the type that autocast computes in."""
    for module in model.modules():
        if isinstance(module, Norm):
            module.narrow = True


class TextEmbedding(nn.Module):
    """Words, positions and segments, and a task token after [CLS] where the model has them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.task = nn.Embedding(config.task_tokens, config.hidden_size) if config.task_tokens else None
        self.norm = Norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, segment_ids: Tensor | None, task_ids: Tensor | None, keys: Tensor | None = None
    ) -> Tensor:
        """int64 (B, L), (B, L) or None for segment 0, (B,) or None -> (B, L or L + 1, h).

        The task token has no position or segment of its own; the words keep theirs. keys: dropout keys of the result's
        positions.
        """
        positions = self.position.weight[: input_ids.shape[1]]
        segments = self.segment.weight[0] if segment_ids is None else self.segment(segment_ids)
        x = self.word(input_ids) + positions + segments
        if task_ids is not None:
            x = torch.cat([x[:, :1], self.task(task_ids)[:, None], x[:, 1:]], 1)
        return self.dropout(self.norm(x), keys)


class ImageEmbedding(nn.Module):
    """Region features and locations, each through a matrix of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.feature = Linear(config.v_feature_size, config.v_hidden_size)
        self.location = Linear(LOCATION_SIZE, config.v_hidden_size)
        self.norm = Norm(config.v_hidden_size)
        self.dropout = Dropout(config.v_hidden_dropout_prob)
        self.feature_dropout = Dropout(config.v_feature_dropout) if config.v_feature_dropout else None

    def forward(self, features: Tensor, locations: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, R, D), (B, R, 5) -> (B, R, h), or rows without padding. keys: dropout keys of the rows."""
        if self.feature_dropout is not None:
            features = self.feature_dropout(features, keys)
        return self.dropout(self.norm(self.feature(features) + self.location(locations)), keys)


class FeedForward(nn.Module):
    """Linear, GELU, Linear, with the residual around them."""

    def __init__(self, size: int, inner: int, dropout: float):
        super().__init__()
        self.up = Linear(size, inner)
        self.down = Linear(inner, size)
        self.norm = Norm(size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        return self.norm.after(self.down(F.gelu(self.up(x))), x, self.dropout, keys)


class Layer(nn.Module):
    """A transformer layer of one stream."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.heads = heads
        self.query_key_value = Linear(size, 3 * size)
        self.attention_dropout = Dropout(attention_dropout)
        self.output = Linear(size, size)
        self.norm = Norm(size)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(size, inner, dropout)

    def forward(self, x: Tensor, layout: Layout, maps: list | None = None) -> Tensor:
        """(num_tokens, size), or (B, L, size) with padding -> the same."""
        context = self_attention(self.query_key_value(x), layout, self.heads, self.attention_dropout, maps)
        x = self.norm.after(self.output(context), x, self.dropout, layout.row_keys)
        return self.feed_forward(x, layout.row_keys)


class Connection(nn.Module):
    """A co-attention layer: the regions attend to the tokens while the tokens attend to the regions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size, text, image = config.bi_hidden_size, config.hidden_size, config.v_hidden_size
        self.heads = config.bi_num_attention_heads
        self.image_query_key_value = Linear(image, 3 * size)
        self.text_query_key_value = Linear(text, 3 * size)
        # As in the reference implementation: the stream of the keys decides on the probability.
        self.image_attention_dropout = Dropout(config.attention_probs_dropout_prob)
        self.text_attention_dropout = Dropout(config.v_attention_probs_dropout_prob)
        self.image_output = Linear(size, image)
        self.text_output = Linear(size, text)
        self.image_norm = Norm(image)
        self.text_norm = Norm(text)
        self.image_dropout = Dropout(config.v_hidden_dropout_prob)
        self.text_dropout = Dropout(config.hidden_dropout_prob)
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

        text_maps collects the tokens' attention to regions (B, heads, L, R), image_maps the reverse.
        """
        for_image, for_text = co_attention(
            self.image_query_key_value(image),
            self.text_query_key_value(text),
            image_layout,
            text_layout,
            self.heads,
            self.image_attention_dropout,
            self.text_attention_dropout,
            image_maps,
            text_maps,
        )
        image_keys, text_keys = image_layout.row_keys, text_layout.row_keys
        image = self.image_norm.after(self.image_output(for_image), image, self.image_dropout, image_keys)
        text = self.text_norm.after(self.text_output(for_text), text, self.text_dropout, text_keys)
        return self.text_feed_forward(text, text_keys), self.image_feed_forward(image, image_keys)


class Pooler(nn.Module):
    """The first position of a stream through Linear and ReLU: (B, L, h) -> (B, bi_hidden_size)."""

    def __init__(self, size: int, pooled: int):
        super().__init__()
        self.dense = Linear(size, pooled)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.dense(x[:, 0]))
