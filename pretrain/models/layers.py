"""The blocks of the two-stream model: embeddings, transformer layer, co-attention layer, pooler.

Every block follows BERT (post-norm): sublayer, dropout, residual, then LayerNorm (epsilon 1e-12). The projections to
queries, keys and values are one matrix, computed by one multiplication.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ops
from pretrain.models.dropout import Dropout
from pretrain.models.linear import Linear
from pretrain.models.model_config import ModelConfig
from pretrain.models.multi_head_attention import co_attention, self_attention
from pretrain.models.packing import SequenceLayout

EPSILON = 1e-12
LOCATION_SIZE = 5  # x1, y1, x2, y2 and area, relative to the width, height and area of the image


class Norm(nn.LayerNorm):
    """LayerNorm with BERT's epsilon, computed in float32 (or float64), also under autocast.

    narrow: under autocast, return the autocast dtype instead of float32. Hidden states between the blocks then take
    half the memory and need no conversion.
    """

    def __init__(self, size: int):
        super().__init__(size, EPSILON)
        self.narrow = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        normed = super().forward(x if x.dtype == torch.float64 else x.float())
        return normed.to(self._output_type(x))

    def after(self, x: Tensor, residual: Tensor, dropout: Dropout, keys: Tensor | None) -> Tensor:
        """LayerNorm(dropout(x) + residual), fused. x, residual: (..., size); keys: int64, one per row."""
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
    """Makes all LayerNorms of a model return the autocast dtype."""
    for module in model.modules():
        if isinstance(module, Norm):
            module.narrow = True


class TextEmbedding(nn.Module):
    """Token, position and segment embeddings, with a task token after [CLS] in models that have task tokens."""

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
        """Embeds tokens.

        Args:
            input_ids: int64 (B, L).
            segment_ids: int64 (B, L); None for segment 0.
            task_ids: int64 (B,); the task token has no position or segment embedding. None for no task token.
            keys: int64 (B, L or L + 1), dropout keys of the output positions.

        Returns:
            (B, L, h), or (B, L + 1, h) with task_ids.
        """
        positions = self.position.weight[: input_ids.shape[1]]
        segments = self.segment.weight[0] if segment_ids is None else self.segment(segment_ids)
        x = self.word(input_ids) + positions + segments
        if task_ids is not None:
            x = torch.cat([x[:, :1], self.task(task_ids)[:, None], x[:, 1:]], 1)
        return self.dropout(self.norm(x), keys)


class ImageEmbedding(nn.Module):
    """Sum of linear projections of region features and locations."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.feature = Linear(config.v_feature_size, config.v_hidden_size)
        self.location = Linear(LOCATION_SIZE, config.v_hidden_size)
        self.norm = Norm(config.v_hidden_size)
        self.dropout = Dropout(config.v_hidden_dropout_prob)
        self.feature_dropout = Dropout(config.v_feature_dropout) if config.v_feature_dropout else None

    def forward(self, features: Tensor, locations: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, R, D), (B, R, 5) -> (B, R, h), or packed rows to packed rows. keys: dropout keys of the rows."""
        if self.feature_dropout is not None:
            features = self.feature_dropout(features, keys)
        return self.dropout(self.norm(self.feature(features) + self.location(locations)), keys)


class FeedForward(nn.Module):
    """Feed-forward network (Linear, GELU, Linear) with dropout, residual and LayerNorm."""

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

    def forward(self, x: Tensor, layout: SequenceLayout, maps: list | None = None) -> Tensor:
        """(num_tokens, size) packed, or (B, L, size) padded -> the same shape."""
        context = self_attention(self.query_key_value(x), layout, self.heads, self.attention_dropout, maps)
        x = self.norm.after(self.output(context), x, self.dropout, layout.row_keys)
        return self.feed_forward(x, layout.row_keys)


class CoAttentionLayer(nn.Module):
    """A co-attention layer: regions attend to tokens, and tokens attend to regions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        size, text, image = config.bi_hidden_size, config.hidden_size, config.v_hidden_size
        self.heads = config.bi_num_attention_heads
        self.image_query_key_value = Linear(image, 3 * size)
        self.text_query_key_value = Linear(text, 3 * size)
        # As in the reference implementation, the probability is that of the stream of the keys.
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
        text_layout: SequenceLayout,
        image: Tensor,
        image_layout: SequenceLayout,
        text_maps: list | None = None,
        image_maps: list | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text (B, L, h_t) and image (B, R, h_v), padded or packed as in their layouts -> the same shapes.

        Args:
            text_maps: if given, the attention of tokens to regions (B, heads, L, R) is appended to it.
            image_maps: if given, the attention of regions to tokens (B, heads, R, L) is appended to it.
        """
        for_image, for_text = co_attention(
            image=self.image_query_key_value(image),
            text=self.text_query_key_value(text),
            image_layout=image_layout,
            text_layout=text_layout,
            heads=self.heads,
            image_dropout=self.image_attention_dropout,
            text_dropout=self.text_attention_dropout,
            image_maps=image_maps,
            text_maps=text_maps,
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
