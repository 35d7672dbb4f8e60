"""The pretraining heads: masked words, masked regions, alignment. They take only the positions to predict."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ModelConfig
from pretrain.layers import Norm
from pretrain.linear import Linear
from pretrain.model import TwoStream, initialise


class Transform(nn.Module):
    """Linear, GELU, LayerNorm, before a decoder: (n, size) -> (n, size)."""

    def __init__(self, size: int):
        super().__init__()
        self.dense = Linear(size, size)
        self.norm = Norm(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x)))


class WordHead(nn.Module):
    """States (n, h) -> scores (n, vocab_size), by the word embeddings themselves."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = Transform(config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.transform(states), word_embeddings, self.bias)


class RegionHead(nn.Module):
    """States (n, h) -> class scores (n, outputs), or features where these are what is predicted."""

    def __init__(self, config: ModelConfig, outputs: int):
        super().__init__()
        self.transform = Transform(config.v_hidden_size)
        self.decoder = Linear(config.v_hidden_size, outputs)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform(states))


class PretrainingModel(nn.Module):
    """The two-stream model with its pretraining heads. Class 0 of the alignment scores is "aligned"."""

    def __init__(self, config: ModelConfig, region_outputs: int | None = None):
        super().__init__()
        self.encoder = TwoStream(config)
        self.words = WordHead(config)
        self.regions = RegionHead(config, region_outputs or config.v_target_size)
        self.alignment = nn.Linear(config.bi_hidden_size, 2)
        for head in (self.words, self.regions, self.alignment):
            initialise(head, config.initializer_range)

    def word_scores(self, states: Tensor) -> Tensor:
        """Text states (n, h) -> (n, vocab_size)."""
        return self.words(states, self.encoder.text_embedding.word.weight)
