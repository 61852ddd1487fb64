"""The Ray cluster to run on: the one that ``RAY_ADDRESS`` names, or one of this process's own, which ends with it."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import ray
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this needs {error.name}, which is not installed: pip install 'magic-pyramid[ray]'", name=error.name
    ) from error

__all__ = ["check_gpus", "cluster", "ray", "share_of"]

# Nothing is told to Ray's makers, and Ray speaks up about errors alone.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "ERROR"}
KEY = secrets.token_hex(
    32
)  # of this process's clusters, where the environment names none; else Ray writes one to ~/.ray
SHARE = 0.9  # of the processors, for processes that hold a model; the rest is for those that read


@contextmanager
def cluster(
    processors: int | None = None, address: str | None = None, shows_logs: bool = False, **variables: str
) -> Iterator[int]:
    """Joins a cluster, or starts one, and gives the number of its processors; one that is joined already is left as it is.

    A cluster of one's own listens on this machine, has a key of its own, and leaves nothing in the home folder.

    Args:
        processors: processors of a cluster of one's own; None: all.
        address: address of a cluster that is there; None: one is started.
        shows_logs: whether what its processes log is shown here too.
        **variables: environment variables of the processes of a cluster of one's own.

    Raises:
        ValueError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield _processors()
        return
    wanted = {**QUIET, **variables}
    if address is None and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        wanted["RAY_AUTH_TOKEN"] = KEY
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with _own_signals():
            _join(address, processors, shows_logs)
        yield _processors()
    finally:
        ray.shutdown()
        for name in added:
            os.environ.pop(name, None)


def _join(address: str | None, processors: int | None, shows_logs: bool) -> None:
    logs = {"logging_level": "error", "log_to_driver": shows_logs}
    if address is None:
        ray.init("local", num_cpus=processors, include_dashboard=False, _node_ip_address="127.0.0.1", **logs)
        return
    try:
        ray.init(address, **logs)
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {address}, which RAY_ADDRESS names; start one with `ray start --head`, or unset it"
        ) from error


def _processors() -> int:
    return int(ray.cluster_resources().get("CPU", 0))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def share_of(processors: float, threads: int, processes: int) -> float:
    """Processors that Ray sets aside for each of several processes, so that all of them find room, and readers too.

    A process that asks for more than is there would wait for ever, and the others for it.
    """
    return round(min(threads, processors / processes) * SHARE - 5e-4, 3)


def check_gpus(device: str, processes: int) -> None:
    """Refuses to wait for GPUs that never come, one for each process.

    Raises:
        ValueError: the cluster has fewer.
    """
    there = int(ray.cluster_resources().get("GPU", 0))
    if device != "cpu" and there < processes:
        raise ValueError(
            f"{processes} processes with --device {device} need a GPU each; Ray finds {there}; ask for fewer processes, or "
            "leave --device out"
        )
