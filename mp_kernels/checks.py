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


def check_vector(name: str, x: torch.Tensor, length: int, dtypes: Sequence[torch.dtype], like: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless ``x`` is a vector of so many elements of one of ``dtypes``."""
    check_tensor(name, x, 1, dtypes, like)
    if x.shape[0] != length:
        raise ValueError(f"{name} must be [{length}]; got {describe(x)}")


def int8_weight_shape(weight: torch.Tensor) -> tuple[int, int]:
    """Outputs and features of an int8 weight, ``[outputs, features]`` or packed."""
    outputs, features, *packed = weight.shape
    return (outputs * packed[0], features * packed[1]) if packed else (outputs, features)


def check_int8_weight(name: str, x: torch.Tensor, like: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless ``x`` is an int8 weight, as it is or packed in panels of 16 outputs."""
    packed = isinstance(x, torch.Tensor) and x.dim() == 4
    check_tensor(name, x, 4 if packed else 2, (torch.int8,), like)
    if packed and (x.shape[2] != 16 or x.shape[3] == 0):
        raise ValueError(f"{name} must be packed as [outputs / 16, features / group, 16, group]; got {describe(x)}")


def check_residual(
    residual: torch.Tensor, index: torch.Tensor | None, width: int, dtype: torch.dtype, name: str, x: torch.Tensor
) -> None:
    """Raises TypeError or ValueError unless ``residual`` has that width, and after ``index`` as many rows as ``x``."""
    check_tensor("residual", residual, 2, (dtype,), x)
    if index is not None:
        check_tensor("index", index, 1, (torch.int64,), x)
    rows = (residual if index is None else index).shape[0]
    if rows != x.shape[0] or residual.shape[1] != width:
        raise ValueError(
            f"residual must have the same rows as {name}, after index, and the width {width}; "
            f"got {describe(x)}, and {rows} rows of {describe(residual)}"
        )


def check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless q, k and v are ``[rows, heads, head_dim]`` and fit each other."""
    check_tensor("q", q, 3, FLOATING, q)
    if 0 in q.shape[1:]:
        raise ValueError(f"q must have at least one head and a head_dim of at least 1; got {describe(q)}")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x, 3, (q.dtype,), q)
        if x.shape[1:] != q.shape[1:] or x.shape[0] != k.shape[0]:
            raise ValueError(
                f"{name} must have q's heads and head_dim and k's rows; q is {describe(q)}, {name} {describe(x)}"
            )


def check_cu_seqlens(cu_seqlens: torch.Tensor, like: torch.Tensor, name: str = "cu_seqlens") -> None:
    """Raises TypeError or ValueError unless ``cu_seqlens`` is int32 ``[batch + 1]``. Its values are not read."""
    check_tensor(name, cu_seqlens, 1, (torch.int32,), like)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have batch + 1 entries, 0 first; got none")


def check_queries(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor, cu_seqlens_q: torch.Tensor | None
) -> None:
    """Raises TypeError or ValueError unless every key has a query, or ``cu_seqlens_q`` says which queries a sample has."""
    if cu_seqlens_q is None:
        if q.shape[0] != k.shape[0]:
            raise ValueError(
                f"q and k must have the same rows unless cu_seqlens_q is given; got {q.shape[0]} and {k.shape[0]}"
            )
        return
    check_cu_seqlens(cu_seqlens_q, q, "cu_seqlens_q")
    if cu_seqlens_q.shape != cu_seqlens.shape:
        raise ValueError(
            f"cu_seqlens_q must have as many entries as cu_seqlens, {cu_seqlens.shape[0]}; got {cu_seqlens_q.shape[0]}"
        )


def check_stays(stays: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    """Raises TypeError or ValueError unless ``stays`` is bool ``[batch]``."""
    check_tensor("stays", stays, 1, (torch.bool,), cu_seqlens)
    if stays.shape[0] != cu_seqlens.shape[0] - 1:
        raise ValueError(f"stays must have one entry per sample, {cu_seqlens.shape[0] - 1}; got {describe(stays)}")


def check_places(
    q: torch.Tensor,
    k: torch.Tensor,
    has_cu_seqlens_q: bool,
    positions_q: torch.Tensor | None,
    positions: torch.Tensor | None,
    bias: torch.Tensor | None,
    buckets: torch.Tensor | None,
    window: int | None,
) -> None:
    """Raises TypeError or ValueError unless the arguments of attention that depends on distances fit each other."""
    if bias is not None and buckets is not None:
        dtypes = (torch.float64,) if q.dtype == torch.float64 else tuple(dict.fromkeys((q.dtype, torch.float32)))
        check_tensor("bias", bias, 2, dtypes, q)
        if bias.shape[0] != q.shape[1] or bias.shape[1] < 1:
            raise ValueError(f"bias must be [heads, buckets] with {q.shape[1]} heads; got {describe(bias)}")
        check_tensor("buckets", buckets, 1, (torch.int32,), q)
        if buckets.shape[0] % 2 == 0:
            raise ValueError(f"buckets must have an entry for each distance -R..R, 2 R + 1; got {describe(buckets)}")
    elif bias is not None or buckets is not None:
        raise ValueError("bias and buckets must be given together; got only one of them")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 0):
        raise ValueError(f"window must be an int of 0 or more, or None for no window; got {describe(window)}")
    for name, x, rows in (("positions_q", positions_q, q), ("positions", positions, k)):
        if x is not None:
            if bias is None and window is None:
                raise ValueError(f"{name} must be None without bias and window, as nothing depends on it")
            check_tensor(name, x, 1, (torch.int32,), q)
            if x.shape[0] != rows.shape[0]:
                raise ValueError(f"{name} must have one entry per row, {rows.shape[0]}; got {describe(x)}")
    if positions is None and positions_q is not None:
        raise ValueError("positions_q must be None without positions")
    if has_cu_seqlens_q and (bias is not None or window is not None) and (positions is None or positions_q is None):
        raise ValueError("positions and positions_q must be given for bias or window with cu_seqlens_q")


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
