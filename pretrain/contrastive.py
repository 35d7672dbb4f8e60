"""Contrastive alignment of the two streams before they meet (as in ALBEF, Li et al. 2021, section 3.2).

An image and its caption are embedded, each by its own stream up to the first co-attention layer, and the pairs of a
batch are told apart by the cosine similarity of their embeddings. The same similarities choose hard negatives for the
alignment head: captions and images that the streams confuse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ModelConfig
from pretrain.linear import Linear
from shards import hashing

TEMPERATURE = 0.05  # by which cosine similarities are divided
_UNIFORM = 1 << 24


class ContrastiveHead(nn.Module):
    """Embeddings of texts and images from the states of their streams, of length 1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text = Linear(config.hidden_size, config.contrastive_size)
        self.image = Linear(2 * config.v_hidden_size, config.contrastive_size)

    def embed_text(self, states: Tensor, mask: Tensor) -> Tensor:
        """Text states (B, L, h_t) and bool mask (B, L) -> (B, contrastive_size): the mean over tokens, projected."""
        return _unit_length(self.text(_mean(states, mask)))

    def embed_image(self, states: Tensor, mask: Tensor) -> Tensor:
        """Image states (B, R, h_v) and bool mask (B, R) -> (B, contrastive_size): mean and maximum, projected."""
        largest = states.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return _unit_length(self.image(torch.cat([_mean(states, mask), largest], 1)))


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(states.dtype)
    return (states.masked_fill(~mask[..., None], 0) * weights).sum(1) / weights.sum(1)


def _unit_length(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def comparable(image_ids: Tensor, text_ids: Tensor, aligned: Tensor) -> Tensor:
    """bool (B, B): whether caption i and image j are known not to belong together, and both are of aligned pairs.

    Args:
        image_ids, text_ids: int64 (B,), equal for the same image, and for captions of the same text.
        aligned: bool (B,).
    """
    different = (image_ids[:, None] != image_ids) & (text_ids[:, None] != text_ids)
    return different & aligned[:, None] & aligned


def contrastive_losses(similarities: Tensor, negatives: Tensor) -> Tensor:
    """float (B,): of each pair, the mean of two cross-entropies: its image among images, its caption among captions.

    Args:
        similarities: float (B, B), of caption i and image j; the pairs are on the diagonal.
        negatives: bool (B, B), what each pair is compared with (see comparable).
    """
    size = len(similarities)
    own = torch.eye(size, dtype=torch.bool, device=similarities.device)
    scores = (similarities / TEMPERATURE).masked_fill(~(negatives | own), float("-inf"))
    by_caption, by_image = (x.log_softmax(1).diagonal() for x in (scores, scores.T))
    return -(by_caption + by_image) / 2


def cosine_similarities(texts: Tensor, images: Tensor) -> Tensor:
    """Cosine similarities (n, m) of embeddings (n, size) and (m, size), of length 1 each; never in a narrow type."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ images.T


def pair_logits(texts: Tensor, images: Tensor) -> Tensor:
    """float (B,): the similarity of each text to its image, on the scale of the contrastive loss's logits."""
    return (texts * images).sum(-1) / TEMPERATURE


def retrieved(similarities: Tensor, negatives: Tensor) -> Tensor:
    """bool (B,): whether a caption is more similar to its image than to every other of the batch."""
    others = similarities.masked_fill(~negatives, float("-inf"))
    return similarities.diagonal() > others.amax(1)


def hard_negatives(similarities: Tensor, negatives: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One misaligned pair for each pair: its caption with another image, or its image with another caption.

    Which of the two, and which other, follows from the keys; the other is drawn with the probability that the
    similarities give it (softmax(similarities / TEMPERATURE)).

    Args:
        similarities, negatives: see contrastive_losses.
        keys: int64 (B,), random numbers of the pairs.

    Returns:
        Rows of captions and rows of images, int64 (B,) each, and bool (B,): false where a pair has no negative.
    """
    rows = torch.arange(len(keys), device=keys.device)
    uniform = (hashing.uniform24(hashing.draw(keys[:, None], rows + 1)).double() + 0.5) / _UNIFORM
    noise = -torch.log(-torch.log(uniform))  # Gumbel: the largest sum is a draw from the softmax
    scores = similarities.detach().double() / TEMPERATURE

    def drawn(scores: Tensor, allowed: Tensor) -> Tensor:
        return (scores + noise).masked_fill(~allowed, float("-inf")).argmax(1)

    other_image = hashing.uniform24(hashing.draw(keys, 0)) < hashing.threshold(0.5)
    images = torch.where(other_image, drawn(scores, negatives), rows)
    captions = torch.where(other_image, rows, drawn(scores.T, negatives.T))
    return captions, images, negatives.any(1)
