"""Copies of batches to the device."""

from collections.abc import Iterable, Iterator

import torch


def on_device(steps: Iterable[list | None], device: torch.device) -> Iterator[list]:
    """Moves the batches of every step to the device; on a GPU, the next copy overlaps with the current step."""
    if device.type != "cuda":
        yield from (parts for parts in steps if parts is not None)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for parts in steps:
        if parts is None:
            if waiting:
                yield _arrived(*waiting)
            waiting = None
            continue
        with torch.cuda.stream(stream):
            following = [part.to(device) for part in parts], stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        waiting = following
    if waiting:
        yield _arrived(*waiting)


def _arrived(parts: list, event: torch.cuda.Event) -> list:
    stream = torch.cuda.current_stream()
    stream.wait_event(event)
    for part in parts:
        part.record_stream(stream)
    return parts
