"""Checks of the operators' arguments: messages say which argument is wrong, what it must be, and what came instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def describe(x: object) -> str:
    """Dtype, shape and device of a tensor; type and value of anything else."""
    if not isinstance(x, torch.Tensor):
        return f"{type(x).__name__} {x!r}"
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def check_tensor(name: str, x: torch.Tensor, dims: int, dtypes: Sequence[torch.dtype], like: torch.Tensor) -> None:
    """Raises TypeError unless ``x`` is a tensor of one of ``dtypes``, and ValueError unless it has ``dims`` dimensions
    and is on the device of ``like``.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {describe(x)}")
    if x.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {wanted}; got {describe(x)}")
    if x.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimension{'s' if dims > 1 else ''}; got {describe(x)}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the other arguments; got {describe(x)}")


def check_cu_seqlens(cu_seqlens: torch.Tensor, like: torch.Tensor, name: str = "cu_seqlens") -> None:
    """Raises TypeError or ValueError unless ``cu_seqlens`` is int32 ``[batch + 1]``. Its values are not read."""
    check_tensor(name, cu_seqlens, 1, (torch.int32,), like)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have batch + 1 entries, 0 first; got none")


def check_stays(stays: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless ``stays`` is bool ``[batch]``."""
    check_tensor("stays", stays, 1, (torch.bool,), cu_seqlens)
    if stays.shape[0] != cu_seqlens.shape[0] - 1:
        raise ValueError(f"stays must have one entry per sample, {cu_seqlens.shape[0] - 1}; got {describe(stays)}")


def check_importance(importance: torch.Tensor, cu_seqlens: torch.Tensor, stays: torch.Tensor | None) -> None:
    """Raises TypeError or ValueError unless the arguments of a token pruning fit each other."""
    dims = importance.dim() if isinstance(importance, torch.Tensor) and importance.dim() == 2 else 1
    check_tensor("importance", importance, dims, (torch.float32, torch.float64), importance)
    if dims == 2 and importance.shape[0] < 1:
        raise ValueError(
            f"importance must be [total] or [heads, total] with a head or more; got {describe(importance)}"
        )
    check_cu_seqlens(cu_seqlens, importance)
    if stays is not None:
        check_stays(stays, cu_seqlens)
