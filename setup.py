"""The compiled operators, where they can be built; all other metadata is in pyproject.toml."""

import glob
import importlib.util
import os
import shutil
import sys
import sysconfig

from setuptools import setup

OPERATORS = ("overlap", "regions", "dropout", "layer_norm")
# The oldest torch and Python that the compiled operators serve, those of pyproject.toml. ops/csrc/binding.cpp uses only
# what stays the same in later ones: the stable ABI of LibTorch as of this version, and nothing of Python.
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000")]  # 2.10
LIMITED_API = "cp311"


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
    # A build that pip isolates does not see the packages of the environment, whose torch is what to build with. They
    # come last, after those that pip has installed for the build.
    sys.path += [place for place in map(sysconfig.get_path, ("platlib", "purelib")) if place not in sys.path]
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print("torch is not installed in this environment: the operators will be pure torch")
        return {}
    sources = [f"ops/csrc/{name}.cpp" for name in ("binding", *(f"{name}_cpu" for name in OPERATORS))]
    kernels = [f"ops/csrc/{name}_cuda.cu" for name in OPERATORS]
    # -ffp-contract and -fmad: CPU and GPU must give the same bits, and so must every processor.
    flags = {"cxx": ["-O3", "-ffp-contract=off"], "nvcc": ["-O3", "-fmad=false"]}
    common = {"extra_compile_args": flags, "py_limited_api": True}
    cpu = cpp_extension.CppExtension("ops._compiled", sources, define_macros=STABLE_ABI, **common)
    attempts = {"for the CPU alone": cpu}
    toolkit = cuda_toolkit(torch.version.cuda) if torch.version.cuda else None
    if toolkit:
        cpp_extension.CUDA_HOME = toolkit
        if not torch.cuda.is_available():  # as where an image is built: torch would ask the GPUs that it sees
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
        macros = [*STABLE_ABI, ("USE_CUDA", None)]  # USE_CUDA is read by headers of torch too
        cuda = cpp_extension.CUDAExtension("ops._compiled", sources + kernels, define_macros=macros, **common)
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


# compat: a path in site-packages instead of an import hook, which editors and type checkers do not follow.
options = {"editable_wheel": {"mode": "compat"}}
if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # a free-threaded Python has no limited API
    options["bdist_wheel"] = {"py_limited_api": LIMITED_API}
setup(options=options, **extension())
