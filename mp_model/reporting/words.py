"""Figures in words, for terminals and pages."""

from __future__ import annotations

from collections.abc import Sequence


def threshold_text(threshold: float | Sequence[float] | None) -> str:
    """An exit threshold for people."""
    if threshold is None:
        return "no exits"
    return f"{threshold:.3g}" if isinstance(threshold, float | int) else " ".join(f"{x:.2g}" for x in threshold)


def times_text(ratio: float) -> str:
    """A ratio for people."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x" if ratio < 1000 else f"{ratio:,.0f}x"


def work_text(gflops: float) -> str:
    """An amount of work for people, given in GFLOPs."""
    return f"{gflops:.3g} GFLOPs" if gflops >= 0.1 else f"{1e3 * gflops:.3g} MFLOPs"


def seconds_text(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def share_text(share: float | None, digits: int = 1) -> str:
    """A share as a percentage, for people; None: there is none."""
    return "-" if share is None else f"{share:.{digits}%}"
