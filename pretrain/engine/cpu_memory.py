"""Bounds on the memory that a training process on a CPU holds without using it.

Batches without padding have a new number of tokens in almost every step. For each such shape, oneDNN keeps the kernels
of bf16 products, and malloc keeps freed blocks that fit no later tensor; both grow for hundreds of steps.
"""

import ctypes
import os

import torch

CACHE_CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
CACHED = 256  # kernels, several times the products of a step; oneDNN's default is 1024
RELEASE_EVERY = 50  # steps; each release costs milliseconds, and page faults afterwards


class CpuMemory:
    """Releases freed memory to the system, in training on a CPU with glibc; does nothing elsewhere."""

    def __init__(self, device: torch.device):
        self._trim = None
        if device.type == "cpu":
            os.environ.setdefault(CACHE_CAPACITY, str(CACHED))  # oneDNN reads it before its first product
            self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None

    def after_step(self, done: int) -> None:
        """done: number of steps so far."""
        if self._trim is not None and done % RELEASE_EVERY == 0:
            self._trim(0)
