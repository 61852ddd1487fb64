"""Builds mp_kernels/_C.so with CMake. Everything else about the package stands in pyproject.toml.

The headers are those of the torch that the package will run with: also under build isolation, where the target
environment is still where ``sysconfig`` points. Only an environment without torch has one brought into the build. A
failed build is reported and leaves a package that works through its plain PyTorch definitions.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MINIMUM_TORCH = "torch>=2.10"


def torch_folder() -> Path | None:
    """The torch package to build against, found without importing it."""
    installed = Path(sysconfig.get_path("platlib")) / "torch"
    if (installed / "include").is_dir():
        return installed
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def find_tool(name: str) -> str:
    """A program of this environment, which need not be activated, or of the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} was not found; run `pip install {name}`")
    return found


class CMakeBuild(build_ext):
    """Runs CMakeLists.txt for the one extension."""

    def get_ext_filename(self, fullname: str) -> str:
        # Not a Python module: torch loads it, so one file serves every Python version.
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        try:
            self._build(output)
        except (OSError, subprocess.CalledProcessError, RuntimeError) as error:
            output.unlink(missing_ok=True)
            banner = "=" * 100
            print(
                f"{banner}\nThe compiled kernels of mp_kernels were not built: {error}\n"
                "The package still works, slowly, through its plain PyTorch definitions. To build the kernels, install a "
                "C++17 compiler (GCC 12 or newer, or Clang), CMake and Ninja, and install again.\n"
                f"{banner}",
                file=sys.stderr,
            )

    def _build(self, output: Path) -> None:
        torch = torch_folder()
        if torch is None:
            raise RuntimeError(f"no torch was found; install {MINIMUM_TORCH} first")
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        build = Path(self.build_temp).resolve()
        shutil.rmtree(build, ignore_errors=True)  # a cache from another environment would name its tools
        configure = [cmake, "-G", "Ninja", "-S", str(Path(__file__).parent.resolve()), "-B", str(build)]
        settings = {"CMAKE_MAKE_PROGRAM": ninja, "MP_TORCH_DIR": torch, "MP_OUTPUT_DIR": output.parent}
        subprocess.run([*configure, *(f"-D{name}={value}" for name, value in settings.items())], check=True)
        subprocess.run([cmake, "--build", str(build)], check=True)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("mp_kernels._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    setup_requires=[] if torch_folder() else [MINIMUM_TORCH],
)
