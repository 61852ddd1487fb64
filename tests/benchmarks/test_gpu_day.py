"""The command for a GPU's first day: what it can do without one, and that it keeps no figure that does not count."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpu import agreement, attention, building, clocks, comparing, document, gather, models, page, plan, running, suites
from gpu.document import FAILED, LEFT_OUT, PASSED, TIMED_OUT, Sheet
from gpu.plan import STEPS, Step

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "gpu_day.py"
MACHINE = {
    "device": "NVIDIA H100",
    "cuda": "13.0",
    "torch": "2.11",
    "triton": "3.6",
    "transformers": "5",
    "nvidia_smi": {},
}
gpu_day = importlib.import_module("gpu_day")


def command(*options: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command, where nothing but what it needs is at hand."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **environment}
    arguments = [sys.executable, str(COMMAND), *map(str, options)]
    return subprocess.run(arguments, cwd=ROOT.parent, env=variables, capture_output=True, text=True, timeout=500)


def write(path: Path, steps: dict[str, Any], dry: bool = False, **machine: Any) -> Path:
    """A document as a run of the command leaves it."""
    document.write(path, {"machine": {**MACHINE, **machine}, "dry": dry, "steps": steps})
    return path


def step(part: int, figures: dict[str, Any] | None = None, status: str = PASSED, **facts: Any) -> dict[str, Any]:
    return {"part": part, "status": status, "seconds": 1.0, "figures": figures or {}, **facts}


# The command


# The build takes longer than all others; tests/gpu has a test below; the model in float32 does what that in bfloat16 does.
NOT_TRIED = {"build", "tests/gpu", "models, float32, 55 x 32"}


def test_a_dry_run_tries_the_steps_and_lists_the_rest(tmp_path: Path) -> None:
    before = gpu_day.PAGE.read_bytes()
    steps = [step for step in STEPS if step.name not in NOT_TRIED]
    ended = command("--dry", *(f"--step={step.name}" for step in steps), OUT=str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr

    known = document.read(tmp_path / "dry" / "gpu.json")
    assert known["dry"]
    for step in steps:
        found = known["steps"][step.name]
        assert found["part"] == step.part
        if found["status"] == LEFT_OUT:
            assert step.needs
            assert found["reason"].startswith("needs ")
        else:
            assert found["status"] == PASSED, found
            assert plan.GPU not in step.needs
        assert f"{step.name:<36}{found['status']}" in ended.stdout
    figures = list(known["steps"]["models, bfloat16, 55 x 32"]["figures"].values())
    assert len(figures) == 10
    for name in ("attention", "rows"):
        figures += [way for ways in known["steps"][name]["figures"].values() for way in ways.values()]
    assert {figure["clock"] for figure in figures} == {"dry"}
    assert "No number here is a measurement" in (tmp_path / "dry" / "gpu.md").read_text()

    assert not (tmp_path / "gpu.json").exists()
    assert gpu_day.main(["--page", str(tmp_path / "dry" / "gpu.json")]) == 2
    assert gpu_day.PAGE.read_bytes() == before


def test_a_step_that_hangs_is_cut_off_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        Step("hangs", 1, 0.2, ("-c", "import time; time.sleep(1000)")),
        Step("fails", 1, 60, ("-c", "import sys; sys.exit('it broke')")),
        Step("works", 1, 60, ("-c", "print('done')")),
        Step("of another part", 2, 60, ("-c", "")),
    ]
    monkeypatch.setattr(gpu_day, "STEPS", steps)
    assert gpu_day.main(["--dry", "--part", "1", "--output", str(tmp_path)]) == 1, capsys.readouterr()
    known = document.read(tmp_path / "dry" / "gpu.json")["steps"]
    statuses = {name: found["status"] for name, found in known.items()}
    assert statuses == {"hangs": TIMED_OUT, "fails": FAILED, "works": PASSED}
    assert known["fails"]["reason"] == "it broke"
    assert "hangs                               timed out" in capsys.readouterr().out


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    ended = running.run(["sh", "-c", "sleep 1000 & echo $!; wait"], 5, tmp_path, {})
    assert ended.status == TIMED_OUT
    assert ended.seconds >= 5
    state = Path("/proc") / ended.tail.strip() / "stat"

    def lives() -> bool:
        try:
            return state.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            return False

    while lives():  # until the test's own limit
        time.sleep(0.1)


def test_a_part_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [Step(name, 1, 60, ("-c", "import time; time.sleep(60)")) for name in ("first", "second")]
    monkeypatch.setattr(gpu_day, "STEPS", steps)
    monkeypatch.setattr(gpu_day, "PART_LIMIT", 0.2)
    assert gpu_day.main(["--dry", "--output", str(tmp_path)]) == 1
    known = document.read(tmp_path / "dry" / "gpu.json")["steps"]
    assert known["first"]["status"] == TIMED_OUT
    assert known["second"]["status"] == LEFT_OUT
    assert known["second"]["reason"] == "part 1 had no time left for it; run it with --step"


def test_unknown_steps_and_files_end_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for options, words in (
        (("--step", "coffee"), "there is no step 'coffee'"),
        (("--page", tmp_path / "nowhere.json"), "cannot be read as JSON"),
        (("--page", tmp_path / "other.json"), "was not written by gpu_day.py"),
    ):
        ended = command(*options, OUT=str(tmp_path / "out"))
        assert ended.returncode == 2
        assert words in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_models_need_no_more_than_a_bare_machine_has() -> None:
    absent = ("accelerate", "captum", "cpuinfo", "datasets", "matplotlib", "pandas", "peft", "pyarrow", "rich", "typer")
    program = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
import torch
import gpu.attention, gpu.models, gpu.rows, gpu.machine, gpu.registrations
with torch.inference_mode():
    model = gpu.models.model_of(torch.float32, dry=True)
    print(model(torch.ones(1, 4, dtype=torch.int64)).logits.shape)
"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))}
    ended = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=300)
    assert ended.stdout.strip() == "torch.Size([1, 4])", ended.stderr


# The page


def test_the_page_is_its_figures() -> None:
    known = json.loads(gpu_day.FIGURES.read_text()) if gpu_day.FIGURES.exists() else None
    assert gpu_day.PAGE.read_text() == page.page(known)


def test_a_page_of_made_up_figures() -> None:
    fast, slow = ({"microseconds": x, "microseconds_from_memory": 2 * x, "kernels": ["k1", "k1"]} for x in (10.0, 25.0))
    way = {"milliseconds": 2.0, "texts_per_second": 16000.0, "busy": 0.5, "device_milliseconds": 1.0}
    counts = {"passed": 70, "failed": 1, "skipped": 2, "failures": [{"test": "tests::one", "message": "no"}]}
    steps = {
        "tests/gpu": step(1, {"tests": counts}, FAILED, reason="1 failed"),
        "rows": step(2, {"gather, bfloat16": {"ours": fast, "torch": slow}}),
        "attention": step(
            2, {"64 tokens, float32": {"ours": {"refused": "answers disagree: NaN"}, "torch SDPA": slow}}
        ),
        "models, bfloat16, 55 x 32": step(
            3,
            {
                "transformers": {**way, "milliseconds": 6.0},
                "ours, dense": {**way, "kernels_per_layer": 8.0, "launches_per_layer": 8.25},
                "ours, pruned": {"refused": "answers disagree: relative error 1.0"},
            },
        ),
    }
    printed = page.page({"machine": MACHINE, "dry": False, "steps": steps})
    for line in (
        "Machine: device NVIDIA H100, cuda 13.0, torch 2.11, triton 3.6, transformers 5.",
        "| tests/gpu | 1 | failed |  | 1 | 1 failed; 70 passed, 1 failed, 2 skipped; `tests::one` |",
        "| Triton suites | 1 | not run |  |  |  |",
        "| gather, bfloat16 | torch | 10.0, 25.0, **2.50** | 20.0, 50.0, **2.50** |",
        "| gather, bfloat16 | `k1` |",
        "| ours, dense | 2.00 | 16000 | **3.00** | 1.00 | 0.50 | 8.0 | 8.2 |",
    ):
        assert line in printed.splitlines()
    assert "| 64 tokens, float32 | torch SDPA | not counted: answers disagree: NaN | not counted" in printed
    assert "| ours, pruned | not counted: answers disagree: relative error 1.0 |" in printed


def test_parts_of_one_machine_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "1.json", {"build": step(1), "rows": step(2, status=LEFT_OUT)}, date="Monday")
    second = write(tmp_path / "2.json", {"build": step(1, status=LEFT_OUT), "rows": step(2)}, date="Tuesday")
    merged = document.merged([document.read(first), document.read(second)])
    assert {name: found["status"] for name, found in merged["steps"].items()} == {"build": PASSED, "rows": PASSED}
    assert {name: found["date"] for name, found in merged["steps"].items()} == {"build": "Monday", "rows": "Tuesday"}
    assert merged["machine"]["date"] == "Tuesday"
    later = document.merged([merged, document.read(second)])
    assert later["steps"] == merged["steps"]

    monkeypatch.setattr(gpu_day, "PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(gpu_day, "FIGURES", tmp_path / "figures.json")
    assert gpu_day.main(["--page", str(first), str(second)]) == 0
    assert document.read(tmp_path / "figures.json") == document.published(merged)
    assert (tmp_path / "gpu.md").read_text() == page.page(merged)


def test_what_is_published_names_no_folder_of_the_machine() -> None:
    told = 'File "/home/somebody/gpu/rows.py", line 4; see https://example.org/a/b and 1/2 of tests/gpu'
    said = 'File "rows.py", line 4; see https://example.org/a/b and 1/2 of tests/gpu'
    step = {"tail": told, "reason": told, "figures": {"x": [told, 1.5]}}
    clean = {"reason": said, "figures": {"x": [said, 1.5]}}
    assert document.published({"machine": {}, "steps": {"rows": step}}) == {"machine": {}, "steps": {"rows": clean}}


def test_the_committed_figures_are_published_ones() -> None:
    figures = document.read(gpu_day.FIGURES)
    assert document.published(figures) == figures


def test_a_step_that_runs_again_begins_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "gpu.json", {"rows": step(2, {"gather": {"ours": {"microseconds": 1.0}}})})
    again = Step("rows", 2, 60, ("-c", "import sys; sys.exit('it broke')"))
    assert gpu_day.run_step(again, path, dry=True, limit=60) == FAILED
    assert document.read(path)["steps"]["rows"]["figures"] == {}
    gpu_day.leave_out(again, path, "no time")
    assert document.read(path)["steps"]["rows"]["status"] == FAILED


def test_parts_of_different_machines_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_day, "PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(gpu_day, "FIGURES", tmp_path / "figures.json")
    first = write(tmp_path / "1.json", {"build": step(1)})
    second = write(tmp_path / "2.json", {"rows": step(2)}, device="NVIDIA H200")
    assert gpu_day.main(["--page", str(first), str(second)]) == 2
    assert "device is NVIDIA H100 and NVIDIA H200" in capsys.readouterr().err
    assert not (tmp_path / "gpu.md").exists()


# Figures that count


def sheet_of(folder: Path, dry: bool = True) -> Sheet:
    """A step's place in a new document."""
    sheet = Sheet(write(folder / "gpu.json", {}, dry), "rows", dry)
    document.start(sheet.path, "rows", part=2, status=document.NOT_ENDED)
    return sheet


def test_an_operator_whose_answers_disagree_has_no_time(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)

    def raises(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cannot run here")

    ways = {
        "ours": lambda x: x + 1,
        "off": lambda x: x + 1.01,
        "nan": lambda x: x * torch.nan,
        "raises": raises,
        "short": lambda x: x[1:],
    }
    fine = comparing.compare(sheet, "sum", lambda: [torch.randn(8)], ways, lambda x: x + 1, 1e-5)
    figures = document.read(sheet.path)["steps"]["rows"]["figures"]["sum"]
    assert not fine
    assert {name for name, figure in figures.items() if "microseconds" in figure} == {"ours"}
    assert figures["off"]["refused"].startswith("answers disagree: relative error")
    assert figures["nan"]["refused"].startswith("answers disagree: relative error nan")
    assert figures["raises"]["refused"] == "RuntimeError: cannot run here"
    assert figures["short"]["refused"].startswith("answers disagree: shapes")


@torch.inference_mode()
def test_a_model_whose_answers_disagree_has_no_time() -> None:
    model = models.model_of(torch.float32, dry=True)
    truth = models.Truth(model)
    batch = models.batch_of([5, 9, 3, 7], 100, model.device, 0)
    prune = truth.prune_thresholds(*batch, 0.7)
    way = models.pyramid(model, [batch], prune_thresholds=prune, exit_threshold="never")
    figure = models.figure_of(way, truth, [batch], 1e-5, 3, dry=True)
    assert figure["relative_error"] < 1e-5
    assert 0.2 < figure["tokens_never_pruned"] < 0.9

    answers = way.answers()
    for wrong in (
        answers._replace(logits=answers.logits + 0.01),
        answers._replace(pruned_by=torch.zeros_like(answers.pruned_by)),
        answers._replace(exit_layer=answers.exit_layer - 1),
    ):
        with pytest.raises(agreement.RefusedError, match="answers disagree"):
            models.figure_of(way._replace(answers=lambda wrong=wrong: wrong), truth, [batch], 1e-5, 3, dry=True)


@pytest.mark.parametrize(
    ("dtype", "longest", "kernels", "right"),
    [
        (torch.bfloat16, 16, ["attention_one_pass"], True),
        (torch.bfloat16, 128, ["attention_streaming", "attention_column_means"], False),
        (torch.bfloat16, 256, ["attention_streaming", "attention_column_means"], True),
        (torch.bfloat16, 256, ["attention_one_pass"], False),
        (torch.bfloat16, 256, ["attention_one_pass", "attention_streaming", "attention_column_means"], False),
        (torch.bfloat16, 1024, ["attention_streaming"], False),
        (torch.bfloat16, 64, ["softmax_warp_forward"], False),
        (torch.float32, 16, ["attention_one_pass"], False),
        (torch.float32, 16, ["attention_streaming", "attention_column_means"], True),
    ],
)
def test_kernels_are_known_by_name(dtype: torch.dtype, longest: int, kernels: list[str], right: bool) -> None:
    assert (attention.wrong_kernels([*kernels, "mean_heads"], dtype, longest) is None) == right


def test_device_work_is_read_from_the_profile() -> None:
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA

    def event(name: str, device: Any, start: float, end: float, annotation: bool = False) -> SimpleNamespace:
        span = SimpleNamespace(start=start, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, device_type=device, time_range=span, is_user_annotation=annotation)

    events = [
        event("aten::add", cpu, 0, 90),
        event("cudaLaunchKernel", cpu, 1, 2),
        event("cuLaunchKernelEx", cpu, 3, 4),
        event("cudaGraphLaunch", cpu, 5, 6),
        event("second", cuda, 50, 80),
        event("first", cuda, 10, 30),
        event("Memcpy DtoH (Device -> Pinned)", cuda, 90, 95),
        event("a region", cuda, 0, 100, annotation=True),
    ]
    assert clocks.work_of_events(events) == clocks.DeviceWork(["first", "second"], 0.055, 3)


# Suites and tools


def test_tests_are_counted(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text("""<testsuites><testsuite>
    <testcase classname="a" name="good"/>
    <testcase classname="a" name="bad"><failure message="it was wrong">trace</failure></testcase>
    <testcase classname="a" name="torn"><failure message="one"/><error message="two"/></testcase>
    <testcase classname="a" name="absent"><skipped message="no device"/></testcase>
    </testsuite></testsuites>""")
    counts = suites.counted(tmp_path / "junit.xml")
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 2, 1)
    assert counts["failures"][0] == {"test": "a::bad", "message": "it was wrong"}


def test_a_build_that_leaves_no_library_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """setup.py itself only prints why."""
    for name, value in sheet_of(tmp_path).environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(building.subprocess, "run", lambda *arguments, **options: None)
    with pytest.raises(SystemExit, match=r"not built: _C\.so"):
        building.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests for a GPU would run")
def test_a_suite_that_skips_everything_has_not_passed(tmp_path: Path) -> None:
    """Also without pytest-timeout, which a machine need not have."""
    sheet = sheet_of(tmp_path, dry=False)
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks"))),
        "PYTEST_ADDOPTS": "-p no:timeout",
    }
    arguments = [sys.executable, "-m", "gpu.suites", "tests/gpu"]
    ended = running.run(arguments, 300, ROOT, {**sheet.environment(), **variables})
    assert ended.status == FAILED
    assert "no test ran: all of them were skipped" in ended.tail
    counts = document.read(sheet.path)["steps"]["rows"]["figures"]["tests"]
    assert counts["skipped"] > 10
    assert counts["passed"] == counts["failed"] == 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_check_of_the_gather_compiles(tmp_path: Path) -> None:
    gather.compile_check(tmp_path / "check", gather.NO_DEVICE)
    assert (tmp_path / "check").exists()


RUNTIME = """
#pragma once
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaMalloc(void** p, size_t n) {
  *p = std::aligned_alloc(256, (n + 255) / 256 * 256);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) { std::free(p); return cudaSuccess; }
inline cudaError_t cudaMemset(void* p, int v, size_t n) { std::memset(p, v, n); return cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
  std::memcpy(to, from, n);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
"""


def run_emulated(folder: Path, kernels: str) -> subprocess.CompletedProcess[str]:
    """Compiles the check of the gather with the emulator of tests/simt, over these kernels, and runs it."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    for path, text in (
        ("csrc/cuda/gather.cuh", kernels),
        ("csrc/cuda/launch.cuh", (ROOT / "csrc/cuda/launch.cuh").read_text()),
        ("benchmarks/gpu/check.cpp", gather.SOURCE.read_text()),
        ("runtime.h", RUNTIME),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    options = ["-std=c++17", "-O1", "-Wno-psabi", "-Wno-unknown-pragmas", f"-I{ROOT / 'tests/simt/include'}"]
    sources = ["-include", str(folder / "runtime.h"), str(folder / "benchmarks/gpu/check.cpp")]
    subprocess.run([compiler, *options, *sources, "-o", str(folder / "check")], check=True)
    return subprocess.run([str(folder / "check")], capture_output=True, text=True, timeout=300)


def test_the_check_of_the_gather_knows_right_from_wrong(tmp_path: Path) -> None:
    kernels = (ROOT / "csrc/cuda/gather.cuh").read_text()
    ended = run_emulated(tmp_path, kernels)
    assert (ended.returncode, ended.stdout) == (0, "all results are those of the host\n"), ended.stderr

    first = "total[k][e] += widened(held[k].element[e])"
    assert first in kernels
    ended = run_emulated(tmp_path, kernels.replace(first, first.replace("+=", "=")))
    assert ended.returncode == 1
    assert "gather_backward, float32: element" in ended.stderr
