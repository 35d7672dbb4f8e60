"""Packaging: the floors as packages, ranges of versions, extras, and the compiled operator where one can be built."""

import glob
import importlib.util
import os
import shutil

from setuptools import find_packages, setup

OPERATORS = ("overlap", "regions", "dropout", "layer_norm")


def cuda_toolkit(version: str) -> str | None:
    """The folder of a CUDA toolkit with both nvcc and headers, the one of torch's version first; None without one.

    torch derives the folder from the nvcc on the PATH, which may be a wrapper or a link outside of any toolkit.
    """
    found = shutil.which("nvcc")
    package = importlib.util.find_spec("nvidia")  # NVIDIA's own wheels
    roots = package.submodule_search_locations if package else ()
    wheels = [f"{root}/cu{version.partition('.')[0]}" for root in roots]
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), f"/usr/local/cuda-{version}"]
    places += [os.path.dirname(os.path.dirname(os.path.realpath(found))) if found else None, "/usr/local/cuda"]
    places += [*sorted(glob.glob("/usr/local/cuda-*"), reverse=True), *wheels]
    for place in places:
        if place and all(os.path.exists(os.path.join(place, x)) for x in ("bin/nvcc", "include/cuda_runtime_api.h")):
            return place
    return None


def extension() -> dict:
    """What builds ops._compiled: nothing without torch or a compiler, CUDA too with nvcc and a CUDA torch."""
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        print("no C++ compiler: the operators will be pure torch")
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print("torch is not here (pip's --no-build-isolation shows it): the operators will be pure torch")
        return {}
    sources = [f"ops/csrc/{name}.cpp" for name in ("binding", *(f"{name}_cpu" for name in OPERATORS))]
    kernels = [f"ops/csrc/{name}_cuda.cu" for name in OPERATORS]
    # -ffp-contract and -fmad: CPU and GPU must give the same bits, and so must every processor.
    flags = {"cxx": ["-O3", "-ffp-contract=off"], "nvcc": ["-O3", "-fmad=false"]}
    cpu = cpp_extension.CppExtension("ops._compiled", sources, extra_compile_args=flags)
    attempts = {"for the CPU alone": cpu}
    toolkit = cuda_toolkit(torch.version.cuda) if torch.version.cuda else None
    if toolkit:
        cpp_extension.CUDA_HOME = toolkit
        if not torch.cuda.is_available():  # as where an image is built: torch would ask the GPUs that it sees
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
        macros = [("WITH_CUDA", None)]
        cuda = cpp_extension.CUDAExtension(
            "ops._compiled", sources + kernels, define_macros=macros, extra_compile_args=flags
        )
        attempts = {"with CUDA": cuda} | attempts

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self):
            """The first attempt that succeeds: another CUDA than torch's, or half a toolkit, cost the GPU's alone."""
            for way, attempt in attempts.items():
                vars(self.extensions[0]).update(vars(attempt))
                self.force = True  # what an attempt before it has left is of no use
                try:
                    return super().build_extensions()
                except Exception as error:  # of compilers, of distutils, of torch: each has kinds of its own
                    print(f"the operators could not be compiled {way}: {error}")
            self.extensions.clear()

    first = next(iter(attempts.values()))
    build = Build.with_options(use_ninja=bool(shutil.which("ninja")))
    return {"ext_modules": [first], "cmdclass": {"build_ext": build}}


setup(
    name="twelve-in-one",
    version="0.1.0",
    description="Train one vision-and-language model on many tasks (the 12-in-1 method)",
    python_requires=">=3.11",
    packages=find_packages(include=["ops*", "shards*", "pretrain*", "finetune*"]),
    package_data={"finetune": ["paper_tables.json"], "finetune.pages": ["*.css", "*.html", "*.js"]},
    install_requires=[
        "torch>=2.10",  # weights_only of earlier ones can be made to run code (CVE-2026-24747)
        "transformers>=5.0",
        "tokenizers>=0.22.2",
        "webdataset>=0.2.100",
        "numpy>=2.0",
        "scipy>=1.13",
        "fire>=0.7",
        "tensorboardX>=2.6.5",
        "safetensors>=0.4.3",
        "pillow>=11.3",  # CVE-2025-48379
        "tqdm>=4.64.1",
        "msgspec>=0.18",
        "pybase64>=1.4",  # forty times as fast as the standard library, and a TSV is nothing else
        "HanTa>=1.2.1",
    ],
    extras_require={
        "lmdb": ["lmdb>=1.4", "msgpack>=1.0.2"],  # shards.convert of the published LMDBs
        "spacy": ["spacy>=3.7"],  # finetune.consistency with a model of spaCy
        "pages": ["matplotlib>=3.9", "bertviz>=1.4.1", "mpld3>=0.5.10", "XStatic-jQuery>=3.5.1.1"],  # report, attention
        "demo": ["gradio>=6.31"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "tensorboard>=2.16",
            "playwright>=1.40",
        ],
    },
    **extension(),
)
