"""Wheels: a tag for any Python, the packages and nothing else, and kernels that need no newer system than torch does.

``make wheels`` builds them, checks them by :mod:`wheels.check`, and runs the operator tests where there is no compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mp_kernels import extension

pytest.importorskip("elftools", reason="pyelftools, which comes with auditwheel, reads compiled kernels")

from wheels import check

ROOT = Path(__file__).parents[1]
PACKED = ("mp_kernels", "mp_model", "csrc", "setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")
NAME = "magic_pyramid-1.0-py3-none-manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine on which the kernels cannot be built."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKED:
        path = ROOT / name
        leave = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(path, source / name, ignore=leave) if path.is_dir() else shutil.copy(path, source)
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", "dist"]
    environment = {**os.environ, "CMAKE_ARGS": "-DMP_TORCH_DIR=nowhere", "MP_WHEEL": "1"}
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "The compiled kernels of mp_kernels._C were not built" in result.stderr
    (found,) = (source / "dist").iterdir()
    return found


def wheel_with(path: Path, kernels: bytes, *others: str) -> Path:
    """A wheel with these kernels, the files that every wheel has, and others, all of them empty."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(check.KERNELS, kernels)
        for name in (*check.DATA, *others):
            archive.writestr(name, "")
    return path


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library that calls what newer compilers take from newer systems, with and thanks to csrc/older_systems.cpp."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("older")
    (folder / "calls.cpp").write_text(
        "#include <memory>\n#include <sstream>\n#include <string>\n"
        'extern "C" std::string* made(long n) {\n'
        "  auto shared = std::make_shared<std::string[]>(n);\n  std::ostringstream out;\n  std::stringstream both;\n"
        '  out << shared.use_count() << both.str();\n  return new std::string[n]{out.str(), "b"};\n}\n'
        '#ifdef __x86_64__\nextern "C" float half(float x) { return static_cast<_Float16>(x) * 3; }\n#endif\n'
    )
    output = folder / "_C.so"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(output)]
    sources = [str(folder / "calls.cpp"), str(ROOT / "csrc" / "older_systems.cpp")]
    subprocess.run([compiler, *flags, *sources, "-l:libgcc.a"], check=True, timeout=120)
    return output.read_bytes()


def test_a_wheel_serves_every_python_on_its_platform(unbuilt: Path) -> None:
    assert "-py3-none-linux_" in unbuilt.name


def test_a_wheel_has_the_packages_and_nothing_else(unbuilt: Path) -> None:
    with zipfile.ZipFile(unbuilt) as archive:
        names = archive.namelist()
        modules = {name for name in names if name.endswith(".py")}
    assert list(check.faults_of_contents(names)) == ["mp_kernels/_C.so is missing"]
    assert modules == {str(path.relative_to(ROOT)) for name in check.FOLDERS for path in (ROOT / name).rglob("*.py")}


def test_kernels_load_on_older_systems(older: bytes, tmp_path: Path) -> None:
    assert list(check.faults_of(wheel_with(tmp_path / NAME, older))) == []


@pytest.mark.parametrize(
    ("name", "others", "fault"),
    [
        ("magic_pyramid-1.0-py3-none-linux_x86_64.whl", [], "does not end with py3-none-manylinux_2_28"),
        ("magic_pyramid-1.0-py3-none-manylinux_2_34_x86_64.whl", [], "does not end with py3-none-manylinux_2_28"),
        ("magic_pyramid-1.0-py3-none-manylinux_2_28_aarch64.whl", [], "the kernels are for EM_X86_64"),
        (NAME, ["mp_kernels/_C_cuda.so"], "mp_kernels/_C_cuda.so runs with one build of torch alone"),
        (NAME, ["tests/conftest.py"], "tests/conftest.py does not belong to the packages"),
    ],
)
def test_wrong_wheels_are_refused(older: bytes, tmp_path: Path, name: str, others: list[str], fault: str) -> None:
    (found,) = check.faults_of(wheel_with(tmp_path / name, older, *others))
    assert fault in found


@pytest.mark.skipif(not extension.is_built(), reason="no kernels are built here")
def test_kernels_that_were_built_for_this_machine_are_refused(tmp_path: Path) -> None:
    faults = list(check.faults_of(wheel_with(tmp_path / NAME, extension.PATH.read_bytes())))
    assert "the kernels look for libraries in a folder of the machine that built them" in faults


def test_no_wheel_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check"])
    with pytest.raises(SystemExit, match="no wheel was named"):
        check.main()
