"""Figures that count: those whose answers were compared with a definition in float64 in the same run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ALLOWED = {torch.bfloat16: 5e-3, torch.float32: 1e-5}  # relative error of an operator


def error_of(got: Tensor, truth: Tensor) -> float:
    """Relative error ``||got - truth|| / ||truth||``; NaN where either holds a NaN."""
    difference = (got.double() - truth.double()).norm()
    return float(difference / truth.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def disagreement(got: Any, truth: Any, allowed: float) -> str | None:
    """Words for an answer that is not the truth's; None: it is.

    got, truth: a tensor, or several.
    """
    got, truth = ([x] if isinstance(x, Tensor) else list(x) for x in (got, truth))
    if [x.shape for x in got] != [x.shape for x in truth]:
        return f"shapes {[list(x.shape) for x in got]} instead of {[list(x.shape) for x in truth]}"
    errors = [error_of(x, y) for x, y in zip(got, truth, strict=True)]
    worst = max(errors, key=lambda error: (error != error, error))  # a NaN is the worst
    return None if worst <= allowed else f"relative error {worst:.1e}, allowed {allowed:.1e}"


class RefusedError(Exception):
    """A figure that must not be reported, and the reason."""


def figure_or_refusal(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figure that ``make`` returns; ``refused``, with the reason, where it raises."""
    try:
        return make()
    except RefusedError as refusal:
        return {"refused": str(refusal)}
    except Exception as error:  # whatever it is, the next figure may still be had
        traceback.print_exc()
        return {"refused": f"{type(error).__name__}: {error}"[:500]}


def demand(got: Any, truth: Any, allowed: float) -> None:
    """Refuses the figure whose answers are not the truth's.

    Raises:
        RefusedError: they disagree.
    """
    reason = disagreement(got, truth, allowed)
    if reason is not None:
        raise RefusedError(f"answers disagree: {reason}")
