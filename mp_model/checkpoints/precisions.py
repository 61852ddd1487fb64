"""Precisions of inference: those that a processor computes faster than float32, and the one for those who do not ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mp_kernels import extension

from ..modelling import PyramidForSequenceClassification

PRECISIONS = ("float32", "bfloat16", "int8")
AUTO = "auto"


@dataclass(frozen=True)
class Precision:
    """A precision that was chosen.

    Attributes:
        name: one of :data:`PRECISIONS`.
        why: the reason, to be read after "since".
        advice: a sentence on how to get one that is faster; None: there is none, or this one was asked for.
    """

    name: str
    why: str
    advice: str | None = None


def precision_of(model: PyramidForSequenceClassification) -> str:
    """The precision of a model's products, of :data:`PRECISIONS` or another dtype."""
    return "int8" if model.config.precision == "int8" else str(model.dtype).removeprefix("torch.")


def why_unfit(precision: str, device: str) -> str | None:
    """The reason why a precision is refused on a device; None: it can be had there, and pays."""
    on_cpu = torch.device(device).type == "cpu"
    if precision == "bfloat16" and on_cpu and not torch.cpu._is_avx512_bf16_supported():
        return "this processor lacks AVX-512 BF16, without which bfloat16 is slower than float32"
    if precision == "int8" and not on_cpu:
        return "int8 is computed on CPUs alone"
    if precision == "int8" and not (extension.multiplies_int8() or torch.cpu._is_vnni_supported()):
        return "this processor multiplies int8 no faster than float32, as those with AMX, VNNI or AVX2 alone do"
    return None


def _advice(config: Any, device: str) -> str | None:
    """A sentence on how to get a precision that a device computes far faster than float32; None: it has none.

    AMX multiplies bfloat16 so fast that rounding to int8 costs more than it saves; vectors alone take half as long for
    int8 as for bfloat16. With AVX2 alone int8 is not far faster, and exits that are tuned for it may let fewer texts leave.
    """
    if torch.device(device).type != "cpu":
        return None
    if torch.cpu._is_amx_tile_supported() and why_unfit("bfloat16", device) is None:
        faster = "bfloat16"
    elif torch.cpu._is_vnni_supported():
        faster = "int8"
    else:
        return None
    how = "ask for it" if config.exit_threshold is None else "tune the exits"
    return f"{faster} would be faster on this processor: {how} with --precision {faster}."


def check_kept(config: Any, precision: str) -> None:
    """Raises ValueError for a precision that weights as a checkpoint's configuration has them no longer have."""
    if config.precision == "int8" and precision != "int8":
        raise ValueError(
            f"precision {precision!r} cannot be had of int8 weights; load the checkpoint that they were made from"
        )


def check_precision(asked: str, device: str) -> None:
    """Raises ValueError for a precision that there is not, or that the device has no use for."""
    if asked not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {asked!r}")
    unfit = why_unfit(asked, device)
    if unfit is not None:
        raise ValueError(f"precision {asked!r} is refused: {unfit}; use float32")


def choose_precision(asked: str, config: Any, device: str) -> Precision:
    """The precision to load a checkpoint in.

    ``"auto"`` is the one that its weights are kept in or its exit thresholds were tuned for, where the device computes it
    fast, and else float32: no answer changes unasked.

    Args:
        asked: one of :data:`PRECISIONS`, or ``"auto"``.
        config: the checkpoint's :class:`mp_model.PyramidConfig`.
        device: device of the model.

    Raises:
        ValueError: a precision that there is not, that the device has no use for, or that the weights no longer have.
    """
    if asked not in (AUTO, *PRECISIONS):
        raise ValueError(f"precision must be {AUTO!r} or one of {', '.join(map(repr, PRECISIONS))}; got {asked!r}")
    kept = config.precision
    if kept == "int8":
        check_kept(config, "int8" if asked == AUTO else asked)
        unfit = why_unfit(kept, device)
        if unfit is not None:
            raise ValueError(f"the weights are int8: {unfit}; load the checkpoint that they were made from")
        return Precision(kept, "the weights are")
    if asked != AUTO:
        check_precision(asked, device)
        return Precision(asked, "it was asked for")
    if kept != "float":
        unfit = why_unfit(kept, device)
        return (
            Precision("float32", f"the weights are {kept}, but {unfit}")
            if unfit
            else Precision(kept, "the weights are")
        )
    tuned = (config.tuned_for or {}).get("precision", "float32")
    if config.exit_threshold is None or tuned == "float32":
        return Precision("float32", "nothing was tuned for another precision", _advice(config, device))
    unfit = "it is unknown here" if tuned not in PRECISIONS else why_unfit(tuned, device)
    if unfit is not None:
        return Precision("float32", f"the exit threshold was tuned for {tuned}, but {unfit}")
    return Precision(tuned, "the exit threshold was tuned for it")
