"""Pretraining heads for masked tokens, masked regions and alignment, applied only to the positions to predict."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers import Norm
from pretrain.models.linear import Linear
from pretrain.models.model_config import ModelConfig
from pretrain.models.vilbert import TwoStream, initialise


class Transform(nn.Module):
    """Linear, GELU and LayerNorm before a decoder: (n, size) -> (n, size)."""

    def __init__(self, size: int):
        super().__init__()
        self.dense = Linear(size, size)
        self.norm = Norm(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class WordHead(nn.Module):
    """Masked-token head: hidden states (n, h) -> logits (n, vocab_size); the decoder is tied to the word embeddings."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = Transform(config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.transform(states), word_embeddings, self.bias)


class RegionHead(nn.Module):
    """Masked-region head: hidden states (n, h) -> class logits or predicted features (n, outputs)."""

    def __init__(self, config: ModelConfig, outputs: int):
        super().__init__()
        self.transform = Transform(config.v_hidden_size)
        self.decoder = Linear(config.v_hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform(states))


class PretrainingModel(nn.Module):
    """The two-stream model with its pretraining heads. Class 0 of the alignment head is "aligned".

    Args:
        region_outputs: outputs of the masked-region head; None for one per class.
        extra: layers of further terms of the loss, by name.
    """

    def __init__(
        self, config: ModelConfig, region_outputs: int | None = None, extra: Mapping[str, nn.Module] | None = None
    ):
        super().__init__()
        self.encoder = TwoStream(config)
        self.words = WordHead(config)
        self.regions = RegionHead(config, region_outputs or config.v_target_size)
        self.alignment = nn.Linear(config.bi_hidden_size, 2)
        self.extra = nn.ModuleDict(extra)
        for head in (self.words, self.regions, self.alignment, *self.extra.values()):
            initialise(head, config.initializer_range)

    def word_scores(self, states: Tensor) -> Tensor:
        """Text states (n, h) -> logits (n, vocab_size)."""
        return self.words(states, self.encoder.text_embedding.word.weight)
