"""The summary of a data set of region shards."""

import itertools

import numpy as np

from shards.common.box_iou import iou
from shards.common.counted import counted
from shards.storage.dataset import read_captions
from shards.storage.reader import RegionReader
from shards.storage.sample import Sample, check_values

OVERLAP = 0.4  # IoU; the default of pretrain.run


def describe_dataset(name: str, reader: RegionReader) -> str:
    """The summary of a data set, as text. name: folder or pattern of its shards, as given."""
    dataset = reader.dataset
    sampled = [reader[int(i)] for i in np.linspace(0, len(reader) - 1, min(len(reader), 1000))]
    for sample in sampled:
        check_values(sample)
    regions = np.array([len(sample.features) for sample in sampled])
    size = sum(shard.bytes for shard in dataset.shards)
    classes = (
        f"{dataset.num_classes}, the {dataset.classes_per_region} most probable of each region stored"
        if dataset.num_classes
        else "none"
    )
    lines = [
        f"data set    {name}",
        f"shards      {len(dataset.shards)}, {size / 1e6:.1f} MB",
        f"images      {len(dataset)}",
        f"detector    {dataset.detector}",
        f"features    {dataset.feature_size} numbers per region",
        f"classes     {classes}",
        f"regions     {regions.min()} to {regions.max()} per image, {regions.mean():.1f} on average "
        f"(over {counted(len(sampled), 'image')})",
        f"overlap     {overlapping(sampled):.1f} others overlap a region with an IoU of at least {OVERLAP}, on average",
    ]
    if dataset.num_classes:
        mass = np.mean([sample.class_probs.astype(float).sum(1).mean() for sample in sampled])
        lines.append(f"mass        {mass:.3f} of the class distribution is stored on average")
    lists = [captions for captions in read_captions(dataset) if captions]
    captions = list(itertools.chain.from_iterable(lists))
    if captions:
        words = np.mean([len(caption.split()) for caption in captions])
        counts = sorted({len(captions) for captions in lists})
        per_image = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
        several = "" if counts[-1] == 1 else f" of {len(lists)} images, {per_image} per image"
        lines.append(
            f"captions    {len(captions)}{several}, {len(set(captions))} different, {words:.1f} words on average"
        )
    else:
        lines.append("captions    none")
    return "\n".join(lines)


def overlapping(samples: list[Sample]) -> float:
    """Mean number of other regions that overlap a region so that pretraining masks them together."""
    counts = [(iou(sample.boxes, sample.boxes) >= OVERLAP).sum(1) - 1 for sample in samples]
    return float(np.concatenate(counts).mean())
