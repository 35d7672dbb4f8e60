"""Boxes of every kind that the operators must agree on."""

import torch


def random_case(batch: int, n: int, seed: int = 0):
    """Boxes of all kinds: random, nested, touching, equal, empty, +0 and -0, NaN, infinite, inside out."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(batch, n, 4, generator=generator)
    boxes[..., 2:] = boxes[..., :2] + 0.5 * boxes[..., 2:]
    kind = torch.randint(0, 16, (batch, n), generator=generator)
    other = boxes.roll(1, 1)
    centre = (other[..., :2] + other[..., 2:]) / 2
    boxes = torch.where((kind == 0)[..., None], other, boxes)
    boxes = torch.where((kind == 1)[..., None], torch.cat([other[..., :2], centre], -1), boxes)
    boxes = torch.where((kind == 2)[..., None], torch.cat([other[..., 2:], other[..., 2:] + 0.1], -1), boxes)
    boxes = torch.where((kind == 3)[..., None], (boxes * 8).round() / 8, boxes)
    boxes = torch.where((kind == 4)[..., None], boxes * torch.tensor([-0.0, 0.0, 1, 1]), boxes)
    boxes = torch.where((kind == 5)[..., None], boxes[..., [2, 3, 0, 1]], boxes)
    boxes[..., 3] = torch.where((kind == 6), torch.tensor([float("nan"), float("inf")])[kind % 2], boxes[..., 3])
    boxes[..., 2] = torch.where((kind == 7), float("inf"), boxes[..., 2])
    boxes = torch.where((kind == 8)[..., None], boxes * 1e-22, boxes)
    seeds = torch.rand(batch, n, generator=generator) < 0.15
    valid = torch.rand(batch, n, generator=generator) < 0.9
    return boxes, seeds, valid
