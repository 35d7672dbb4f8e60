# An image for machines with NVIDIA GPUs, with the tested versions and the operators compiled for CUDA:
#
#     docker build --tag twelve-in-one .
#     docker run --gpus all --shm-size 8g --volume "$PWD:/workspace" twelve-in-one python -m pretrain.run --out runs/pretrain
#
# CUDA_VERSION is the toolkit that compiles the operators; it has to be that of pip's torch.
ARG CUDA_VERSION=13.0.1
ARG UBUNTU_VERSION=24.04

FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu${UBUNTU_VERSION} AS build
# Ubuntu removes old versions of packages from its archive, so that a build with pinned ones would fail after a while.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/twelve-in-one
ENV PATH=/opt/twelve-in-one/bin:$PATH
WORKDIR /source
COPY requirements.txt ./
RUN pip install --no-cache-dir --constraint requirements.txt torch setuptools wheel
COPY pyproject.toml setup.py README.md LICENSE ./
COPY ops ops
COPY shards shards
COPY pretrain pretrain
COPY finetune finetune
RUN pip install --no-cache-dir --no-build-isolation --constraint requirements.txt ".[lmdb,pages,demo]"
WORKDIR /
# A compilation that fails leaves the pure torch versions, with which a GPU is slow.
RUN python -c "from ops.registration import backends; assert backends['CUDA'] == 'compiled', backends"

FROM ubuntu:${UBUNTU_VERSION}
# Triton compiles the launchers of its kernels when they are first used: gcc and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/twelve-in-one /opt/twelve-in-one
ENV PATH=/opt/twelve-in-one/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The user ubuntu of the base image. Use `docker run --user "$(id -u):$(id -g)" --env HOME=/tmp` as another one.
USER 1000:1000
WORKDIR /workspace
EXPOSE 7860
CMD ["twelve-in-one", "--help"]
