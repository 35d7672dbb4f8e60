"""Image-text contrastive loss before the first co-attention layer (as in ALBEF, Li et al. 2021, section 3.2).

Each stream embeds its input with its layers below the first co-attention layer, and the loss contrasts the cosine
similarities of matching pairs with those of the other pairs of the batch. The same similarities select hard negatives
for the alignment head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.linear import Linear
from pretrain.models.model_config import ModelConfig
from shards.common import counter_rng

TEMPERATURE = 0.05  # cosine similarities are divided by it
_UNIFORM = 1 << 24


class ContrastiveHead(nn.Module):
    """Projects the hidden states of both streams to text and image embeddings of unit length."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text = Linear(config.hidden_size, config.contrastive_size)
        self.image = Linear(2 * config.v_hidden_size, config.contrastive_size)

    def embed_text(self, states: Tensor, mask: Tensor) -> Tensor:
        """Text states (B, L, h_t), bool mask (B, L) -> (B, contrastive_size), projected from the mean over tokens."""
        return _unit_length(self.text(masked_mean(states, mask)))

    def embed_image(self, states: Tensor, mask: Tensor) -> Tensor:
        """Image states (B, R, h_v), bool mask (B, R) -> (B, contrastive_size), projected from mean and maximum."""
        largest = states.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return _unit_length(self.image(torch.cat([masked_mean(states, mask), largest], 1)))

    def embed_regions(self, states: Tensor) -> Tensor:
        """Image states (B, R, h_v) -> (B, R, contrastive_size): the embedding of each row as an image of its own."""
        return _unit_length(self.image(torch.cat([states, states], -1)))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states (B, L, h) over the true positions of a mask, bool (B, L) -> (B, h)."""
    weights = mask[..., None].to(states.dtype)
    return (states.masked_fill(~mask[..., None], 0) * weights).sum(1) / weights.sum(1)


def _unit_length(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def comparable(image_ids: Tensor, text_ids: Tensor, aligned: Tensor) -> Tensor:
    """bool (B, B): whether caption i and image j differ in image and in text, and both belong to aligned pairs.

    Args:
        image_ids, text_ids: int64 (B,), equal for the same image and for captions with the same text.
        aligned: bool (B,).
    """
    different = (image_ids[:, None] != image_ids) & (text_ids[:, None] != text_ids)
    return different & aligned[:, None] & aligned


def contrastive_losses(similarities: Tensor, negatives: Tensor) -> Tensor:
    """float (B,): per pair, the mean of the image-to-text and text-to-image cross-entropies (InfoNCE).

    Args:
        similarities: float (B, B), of caption i and image j; matching pairs are on the diagonal.
        negatives: bool (B, B), the negatives of each pair (see comparable).
    """
    size = len(similarities)
    own = torch.eye(size, dtype=torch.bool, device=similarities.device)
    scores = (similarities / TEMPERATURE).masked_fill(~(negatives | own), float("-inf"))
    by_caption, by_image = (x.log_softmax(1).diagonal() for x in (scores, scores.T))
    return -(by_caption + by_image) / 2


def cosine_similarities(texts: Tensor, images: Tensor) -> Tensor:
    """Cosine similarities (n, m) of unit-length embeddings (n, size) and (m, size), without autocast."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ images.T


def pair_logits(texts: Tensor, images: Tensor) -> Tensor:
    """float (B,): the similarity of each text and its image, divided by the temperature of the contrastive loss."""
    return (texts * images).sum(-1) / TEMPERATURE


def region_logits(texts: Tensor, regions: Tensor) -> Tensor:
    """float (B, R): as pair_logits, of each text (B, size) and the regions of its image (B, R, size)."""
    return (regions @ texts[..., None])[..., 0] / TEMPERATURE


def retrieved(similarities: Tensor, negatives: Tensor) -> Tensor:
    """bool (B,): whether a caption is more similar to its image than to all negatives in the batch."""
    others = similarities.masked_fill(~negatives, float("-inf"))
    return similarities.diagonal() > others.amax(1)


def hard_negatives(similarities: Tensor, negatives: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples one misaligned pair per pair: its caption with another image, or its image with another caption.

    The keys determine both choices. The other image or caption is sampled from softmax(similarities / TEMPERATURE).

    Args:
        similarities, negatives: see contrastive_losses.
        keys: int64 (B,), random keys of the pairs.

    Returns:
        Batch indices of the captions and of the images, int64 (B,) each, and bool (B,), false if a pair has no
        negative.
    """
    rows = torch.arange(len(keys), device=keys.device)
    uniform = (counter_rng.uniform24(counter_rng.draw(keys[:, None], rows + 1)).double() + 0.5) / _UNIFORM
    noise = -torch.log(-torch.log(uniform))  # Gumbel-max trick: the argmax of the sum is a sample from the softmax
    scores = similarities.detach().double() / TEMPERATURE

    def drawn(scores: Tensor, allowed: Tensor) -> Tensor:
        return (scores + noise).masked_fill(~allowed, float("-inf")).argmax(1)

    other_image = counter_rng.uniform24(counter_rng.draw(keys, 0)) < counter_rng.threshold(0.5)
    images = torch.where(other_image, drawn(scores, negatives), rows)
    captions = torch.where(other_image, rows, drawn(scores.T, negatives.T))
    return captions, images, negatives.any(1)
