"""Images to regions: the detector of the paper."""

import contextlib

import numpy as np
import torch

from benchmarks.gpu_stages.measuring import DEVICE, ON_GPU, Record, timed


def detector(record: Record) -> None:
    """The detector of the paper, random weights, 800 x 1333 pixels: images per second, and shares of its parts."""
    from shards.detection.x152.detector import RegionDetector
    from shards.detection.x152.network import DetectorConfig, Network

    small = DetectorConfig(
        **{"stem_channels": 4, "res2_channels": 8, "groups": 2, "width_per_group": 2, "fpn_channels": 8},
        **{"head_dim": 16, "classes": 9, "min_size": 96, "max_size": 128, "max_regions": 5},
    )
    config = DetectorConfig() if ON_GPU else small
    height, width, size = (800, 1333, 4) if ON_GPU else (96, 128, 1)
    torch.manual_seed(0)
    network = Network(config).eval().requires_grad_(False)
    images = [np.random.default_rng(n).integers(0, 255, (height, width, 3), dtype=np.uint8) for n in range(size)]
    found = RegionDetector(network, config, DEVICE)
    for precision, layout in (
        ("float32", torch.contiguous_format),
        ("fp16", torch.contiguous_format),
        ("fp16", torch.channels_last),
        ("bf16", torch.channels_last),
    ):
        network.to(memory_format=layout)
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        narrow = torch.autocast(DEVICE.type, dtype) if dtype and ON_GPU else contextlib.nullcontext()
        with narrow, torch.no_grad():
            prepared = found.batch([found.prepared(image)[0] for image in images]).to(memory_format=layout)
            backbone, _ = timed(lambda x=prepared: network.backbone(x), repeats=3, warmup=2)
            seconds, host = timed(lambda: found.detect_batch(images), repeats=3, warmup=1)
        name = "channels last" if layout is torch.channels_last else "contiguous"
        record.add(
            precision=precision,
            layout=name,
            images_per_second=size / seconds,
            batch=size,
            host_ms=host * 1e3 / size,
            outside_backbone=1 - backbone / seconds,
        )
