"""Packaging: the floors as packages, ranges of versions, extras for what only some users need."""

from setuptools import find_packages, setup

setup(
    name="twelve-in-one",
    version="0.1.0",
    description="Train one vision-and-language model on many tasks (the 12-in-1 method)",
    python_requires=">=3.11",
    packages=find_packages(include=["ops*", "shards*", "pretrain*"]),
    install_requires=[
        "torch>=2.4",
        "transformers>=4.48",
        "tokenizers>=0.19",
        "webdataset>=0.2.100",
        "numpy>=1.26",
        "scipy>=1.11",
        "fire>=0.6",
        "tensorboardX>=2.6",
        "safetensors>=0.4.3",
        "pillow>=10",
        "tqdm>=4.64",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.6", "tensorboard>=2.16"],
    },
)
