"""The emulator runs correct kernels correctly and finds the deliberate bugs of ``bugs.cpp``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCHEDULES = range(4)
RIGHT, WRONG, REFUSED, SANITIZER = 0, 1, 2, 99


def run(bugs: Path, program: str, schedule: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": f"exitcode={SANITIZER}:detect_leaks=0"}
    command = [str(bugs), program, str(schedule)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("program", ["pass_on", "sum_block", "vote"])
def test_right_kernels(bugs: Path, program: str) -> None:
    for schedule in SCHEDULES:
        ended = run(bugs, program, schedule)
        assert ended.returncode == RIGHT, ended.stderr


@pytest.mark.parametrize("program", ["missing_barrier_next", "missing_barrier_previous"])
def test_missing_barrier_shows_in_some_order(bugs: Path, program: str) -> None:
    outcomes = {run(bugs, program, schedule).returncode for schedule in SCHEDULES}
    assert WRONG in outcomes
    assert outcomes <= {RIGHT, WRONG}


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("skip_barrier", ["divergent barrier", "waits in __syncthreads at ", "thread (16, 0, 0) has ended"]),
        ("part_ways", ["divergent barrier", "thread (0, 0, 0) waits", "thread (1, 0, 0) waits"]),
        ("leave_before_barrier", ["divergent barrier", "thread (5, 0, 0) has ended"]),
        ("vote_without_all", ["divergent barrier", "waits in __ballot_sync at ", "thread (16, 0, 0) has ended"]),
        ("barrier_against_vote", ["divergent barrier", "waits in __syncthreads at ", "thread (32, 0, 0) has ended"]),
        ("read_outside_mask", ["__shfl_sync at ", "reads lane 20, not in the mask"]),
        ("not_in_own_mask", ["__syncwarp at ", "lane 16 is not in its own mask"]),
        ("assert_small", ["device assert failed: threadIdx.x < 40 at ", "block (0, 0, 0), thread (40, 0, 0)"]),
        ("empty_grid", ["invalid launch: grid (0, 1, 1), block (70, 1, 1)"]),
    ],
)
def test_errors_of_the_device_end_the_launch(bugs: Path, program: str, told: list[str]) -> None:
    ended = run(bugs, program)
    assert ended.returncode == REFUSED
    assert all(part in ended.stderr for part in told), ended.stderr


@pytest.mark.parametrize("program", ["skip_barrier", "part_ways", "leave_before_barrier", "vote_without_all"])
def test_divergence_is_found_in_every_order(bugs: Path, program: str) -> None:
    assert {run(bugs, program, schedule).returncode for schedule in SCHEDULES} == {REFUSED}


@pytest.mark.parametrize(
    ("program", "told"), [("write_far", "heap-buffer-overflow"), ("write_far_in_shared", "global-buffer-overflow")]
)
def test_out_of_bounds_writes_are_seen(bugs: Path, program: str, told: str) -> None:
    ended = run(bugs, program)
    assert ended.returncode == SANITIZER
    assert told in ended.stderr
    assert "bugs.cpp" in ended.stderr
