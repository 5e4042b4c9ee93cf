"""Builds the operator library with the C++ compiler of the machine; pyproject.toml has the rest.

QUORUM_ARCH    the value of -march: native by default; x86-64-v3 for example for a wheel that is to run elsewhere; empty for none
QUORUM_EIGEN   folder of Eigen's headers; QUORUM_XSIMD of xsimd's. By default where Debian and Ubuntu put them
CXX            the compiler
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def headers(variable, header, package, candidates):
    """The folder that holds a header, or the end of the build with a line that says what to install."""
    named = os.environ.get(variable)
    for folder in [named] if named else candidates:
        if (Path(folder) / header).exists():
            return str(folder)
    sys.exit(f"setup.py: {header} was not found; install {package} or set {variable} to its folder")


def extension():
    if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        sys.exit("setup.py: there is no C++ compiler; install g++ or set CXX")
    eigen = headers("QUORUM_EIGEN", "Eigen/Core", "libeigen3-dev", ["/usr/include/eigen3", "/usr/local/include/eigen3"])
    xsimd = headers("QUORUM_XSIMD", "xsimd/xsimd.hpp", "libxsimd-dev", ["/usr/include", "/usr/local/include"])
    arch = os.environ.get("QUORUM_ARCH", "native")
    return CppExtension(
        "quorum_torch._operators",
        # Relative, as setuptools wants them.
        [os.path.relpath(path, HERE) for path in sorted((HERE / "csrc").glob("*.cpp"))],
        include_dirs=[str(ROOT), str(ROOT / "include")] + ([] if xsimd == "/usr/include" else [xsimd]),
        # OpenMP's runtime is torch's own, already loaded: linking another one would mean a second set of threads.
        extra_compile_args=["-std=c++20", "-O3", "-fopenmp", "-fvisibility=hidden", "-g0", f"-isystem{eigen}"] + ([f"-march={arch}"] if arch else []),
        extra_link_args=["-Wl,-s"],
        py_limited_api=True,
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)})
