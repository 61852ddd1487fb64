"""Build of mp_kernels/_C.so with CMake, and of _C_cuda.so if torch was built for CUDA and nvcc is installed. Everything
else about the package is in pyproject.toml.

The headers are those of the torch that the package will run with, under build isolation too: there ``sysconfig`` still
points to the target environment. Only if that environment has no torch is torch a requirement of the build. A failed build
is reported and leaves a package that works through its plain PyTorch definitions (and Triton).

``MP_WHEEL=1`` builds for other machines: ``_C.so`` for older systems too, and no ``_C_cuda.so``, which would run with one
torch alone. ``CMAKE_ARGS`` are further arguments of CMake, such as another compiler.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MINIMUM_TORCH = "torch>=2.10"
FOR_OTHERS = os.environ.get("MP_WHEEL") == "1"


def torch_folder() -> Path | None:
    """Folder of the torch package to build against, found without importing it; None if there is no torch."""
    installed = Path(sysconfig.get_path("platlib")) / "torch"
    if (installed / "include").is_dir():
        return installed
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def cuda_of_torch() -> str | None:
    """CUDA version that torch was built for; None if for none. No device is needed, as build machines often have none."""
    torch = torch_folder()
    if torch is None or not (torch / "version.py").is_file():
        return None
    for statement in ast.parse((torch / "version.py").read_text()).body:
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", None) == "cuda":
            return ast.literal_eval(statement.value)
    return None


def find_nvcc() -> str | None:
    """Path of the nvcc of CUDA_HOME, or else of the PATH; None if there is none.

    It may be a wrapper that lies outside CUDA's folder, so CMake asks it for the rest of CUDA.
    """
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=str(Path(home) / "bin"))) or shutil.which("nvcc")


def find_tool(name: str) -> str:
    """Path of a program of this environment, which need not be activated, or else of the system.

    Raises:
        RuntimeError: the program is not installed.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} was not found; run `pip install {name}`")
    return found


class Library(NamedTuple):
    """A library that torch loads.

    Attributes:
        target: target in CMakeLists.txt.
        settings: values of CMake variables.
        without_it: advice for a user whose build failed.
    """

    target: str
    settings: dict[str, str]
    without_it: str


CPU = Library(
    "_C",
    {"MP_WHEEL": "ON" if FOR_OTHERS else "OFF"},
    "The package still works, slowly, through its plain PyTorch definitions. To build the kernels, install a C++17 compiler "
    "(GCC 12 or newer, or Clang), CMake and Ninja, and install again.",
)


def libraries() -> dict[str, Library]:
    """Libraries to build on this machine, by the names of their extensions."""
    found = {"mp_kernels._C": CPU}
    nvcc = find_nvcc()
    if cuda_of_torch() and nvcc and not FOR_OTHERS:
        found["mp_kernels._C_cuda"] = Library(
            "_C_cuda",
            {"MP_CUDA": "ON", "CMAKE_CUDA_COMPILER": nvcc},
            "The package still works, on CUDA devices through Triton. To build these kernels too, put the nvcc of CUDA "
            f"{cuda_of_torch()}, which this torch was built for, on the PATH (or set CUDA_HOME), and install again.",
        )
    return found


class CMakeBuild(build_ext):
    """Build of each library by CMake, in a folder of its own, so that a failed build leaves the other as it is."""

    def get_ext_filename(self, fullname: str) -> str:
        # torch loads the file, not Python, so it serves every Python version.
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = libraries()[ext.name]
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self._build(library, output)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            output.unlink(missing_ok=True)
            banner = "=" * 100
            print(
                f"{banner}\nThe compiled kernels of {ext.name} were not built: {error}\n{library.without_it}\n{banner}",
                file=sys.stderr,
            )

    def _build(self, library: Library, output: Path) -> None:
        torch = torch_folder()
        if torch is None:
            raise RuntimeError(f"no torch was found; install {MINIMUM_TORCH} first")
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        build = Path(self.build_temp).resolve() / library.target
        shutil.rmtree(build, ignore_errors=True)  # a cache from another environment would name its tools
        configure = [cmake, "-G", "Ninja", "-S", str(Path(__file__).parent.resolve()), "-B", str(build)]
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "MP_TORCH_DIR": torch,
            "MP_OUTPUT_DIR": output.parent,
            **library.settings,
        }
        asked_for = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run([*configure, *(f"-D{name}={value}" for name, value in settings.items()), *asked_for], check=True)
        subprocess.run([cmake, "--build", str(build), "--target", library.target], check=True)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(name, sources=[], optional=True) for name in libraries()],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    setup_requires=[] if torch_folder() else [MINIMUM_TORCH],
)
