"""Times: by replay of a CUDA graph, by the wall clock, and of the kernels one by one."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

LAUNCH = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch)")
WALL_SECONDS = 0.5  # of runs that a wall-clock time is the median of
LEAST_RUNS, MOST_RUNS = 5, 100


def graph_microseconds(function: Callable[[], Any], dry: bool) -> float:
    """The time of a call without that of its launches: the median of a graph's replays; by the wall clock in a dry run."""
    if dry:
        return 1e3 * wall_milliseconds(function, dry)
    from triton.testing import do_bench_cudagraph

    return 1e3 * do_bench_cudagraph(function, return_mode="median")


def wall_milliseconds(function: Callable[[], Any], dry: bool) -> float:
    """The median time of a call and everything that it makes the device do, launches included."""
    wait = (lambda: None) if dry else torch.cuda.synchronize
    function()
    wait()
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < WALL_SECONDS and len(seconds) < MOST_RUNS):
        begin = time.perf_counter()
        function()
        wait()
        seconds.append(time.perf_counter() - begin)
        if dry:
            break
    return 1e3 * statistics.median(seconds)


class DeviceWork(NamedTuple):
    """The device's part of a call.

    Attributes:
        kernels: their names, in the order in which they began.
        milliseconds: time of all of them, of copies and fills too.
        launches: calls by which the host started kernels or whole graphs of them.
    """

    kernels: list[str]
    milliseconds: float
    launches: int


def device_work(function: Callable[[], Any]) -> DeviceWork:
    """The kernels of a call, by torch's profiler; the call has run before, so that nothing is compiled now."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        function()
        torch.cuda.synchronize()
    return work_of_events(found.events())


def work_of_events(events: Iterable[Any]) -> DeviceWork:
    """The same from the profiler's events."""
    events = list(events)
    on_device = [
        event
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    on_device.sort(key=lambda event: event.time_range.start)
    kernels = [event.name for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    busy = sum(event.time_range.elapsed_us() for event in on_device) / 1e3
    launches = sum(
        bool(LAUNCH.match(event.name)) for event in events if event.device_type == torch.autograd.DeviceType.CPU
    )
    return DeviceWork(kernels, busy, launches)
