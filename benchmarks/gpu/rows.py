"""Token-wise steps, gathers and exit heads beside torch's own operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mp_kernels
from mp_kernels import extension, reference

from .agreement import ALLOWED
from .comparing import Way, compare, draws, run_all
from .document import Sheet
from .plan import OURS

HIDDEN, HEADS, WIDE, LABELS = 768, 12, 3072, 4
TOKENS = 55  # of a text
BATCHES = (32, 256)  # texts
TORCH = "torch"


class Case(NamedTuple):
    """An operator's inputs, our way and torch's to its result, and the definition."""

    inputs: Callable[[], list[Any]]
    ours: Way
    torch: Way
    truth: Way


def torch_gather(xs: list[Tensor], index: Tensor) -> list[Tensor]:
    """Rows of several tensors, one after the other."""
    return [x.index_select(0, index) for x in xs]


def torch_prune(x: Tensor, importance: Tensor, cu_seqlens: Tensor, threshold: float) -> Tensor:
    """Rows of the tokens that survive, and row 0 to the end of the buffer."""
    keep = importance.mean(0) >= threshold
    keep.index_fill_(0, cu_seqlens[:-1].long(), True)
    return x.index_select(0, torch.nonzero_static(keep, size=x.shape[0], fill_value=0).squeeze(1))


def ours_prune(*inputs: Any) -> Tensor:
    """The same by our operator."""
    return torch.ops.mp_kernels.prune_rows(*inputs)[0]


def torch_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Sum and LayerNorm."""
    return F.layer_norm(x + residual, x.shape[1:], weight, bias, eps)


def torch_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Bias and GELU."""
    return F.gelu(x + bias)


def torch_mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean of each sample's rows, summed in float32."""
    return torch.segment_reduce(x.float(), "mean", offsets=cu_seqlens, axis=0, unsafe=True).to(x.dtype)


def torch_pair(first: Tensor, x: Tensor, cu_seqlens: Tensor, middles: Tensor) -> Tensor:
    """What exits read of two texts, summed in float32; neither is empty."""
    mean = torch_mean(x.float(), cu_seqlens)
    a, b = torch_mean(x.float(), reference.parts_of_pairs(cu_seqlens, middles)).unflatten(0, (-1, 2)).unbind(1)
    return torch.cat([first, *(part.to(x.dtype) for part in (mean, (a - b).abs(), a * b))], dim=1)


def torch_head(x: Tensor, dense: Tensor, dense_bias: Tensor, weight: Tensor, bias: Tensor, threshold: float) -> Any:
    """Logits and uncertainty of an exit head; who stays is computed too."""
    logits = F.linear(torch.tanh(F.linear(x, dense, dense_bias)), weight, bias)
    log_p = torch.log_softmax(logits.float(), -1)
    uncertainty = -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[1])
    return (logits, uncertainty, ~(uncertainty <= threshold))[:2]


def ours_head(*inputs: Any) -> Any:
    """The same by our operator."""
    return mp_kernels.exit_head(*inputs)[:2]


def truth_head(*inputs: Any) -> Any:
    """The same by the definition."""
    return reference.exit_head(*inputs)[:2]


def cases(batch: int, device: torch.device, drawn: Callable[..., Tensor]) -> dict[str, Case]:
    """The operators at a batch of so many texts; drawn: random numbers ``[shape]`` of the dtype."""
    rows = batch * TOKENS
    every = torch.arange(rows, device=device)
    index = every[every % 5 != 0]
    starts = torch.arange(0, rows + 1, TOKENS, dtype=torch.int32, device=device)

    def one() -> list[Any]:
        return [[drawn(rows, HIDDEN)], index]

    def several() -> list[Any]:  # as a layer that lets samples go: states, keys with values, places in the batch
        return [[drawn(rows, HIDDEN), drawn(rows, 2 * HIDDEN), every.clone()], index]

    def prune() -> list[Any]:
        return [drawn(rows, HIDDEN), drawn(HEADS, rows).float(), starts, -0.24]  # four fifths survive

    def norm() -> list[Any]:
        return [drawn(rows, HIDDEN), drawn(rows, HIDDEN), 1 + drawn(HIDDEN), drawn(HIDDEN), 1e-12]

    def head() -> list[Any]:
        dense = [drawn(HIDDEN, HIDDEN) / HIDDEN**0.5, drawn(HIDDEN)]
        return [drawn(batch, HIDDEN), *dense, drawn(LABELS, HIDDEN) / HIDDEN**0.5, drawn(LABELS), 0.5]

    gather = (mp_kernels.ragged_gather, torch_gather, torch_gather)
    return {
        "gather of one tensor": Case(one, *gather),
        "gather of three tensors": Case(several, *gather),
        "prune, and move the rows": Case(prune, ours_prune, torch_prune, torch_prune),
        "add and LayerNorm": Case(norm, mp_kernels.add_layer_norm, torch_norm, reference.add_layer_norm),
        "bias and GELU": Case(
            lambda: [drawn(rows, WIDE), drawn(WIDE)], mp_kernels.bias_gelu, torch_gelu, reference.bias_gelu
        ),
        "mean of each text": Case(
            lambda: [drawn(rows, HIDDEN), starts], mp_kernels.ragged_mean, torch_mean, reference.ragged_mean
        ),
        "features of each pair": Case(
            lambda: [drawn(batch, HIDDEN), drawn(rows, HIDDEN), starts, starts[:-1].long() + TOKENS // 3],
            *(mp_kernels.pair_features, torch_pair, reference.pair_features),
        ),
        "exit head": Case(head, ours_head, torch_head, truth_head),
    }


def wrong_gather(names: list[str]) -> str | None:
    """Words for a gather by another kernel than the compiled one, where that was built; None: all is well."""
    compiled = any("mp::gather_rows" in name for name in names)
    return None if compiled or not extension.is_cuda_built() else f"the compiled gather did not run: {names}"


def run(sheet: Sheet, name_of_dtype: str) -> bool:
    """Keeps the figures of a dtype, in BERT-base's shapes; returns whether all is well."""
    dtype = getattr(torch, name_of_dtype)
    device, drawn = draws(sheet, dtype)
    fine = []
    for batch in (2,) if sheet.dry else BATCHES:
        for name, case in cases(batch, device, drawn).items():
            check = wrong_gather if name.startswith("gather") else None
            ways = {OURS: case.ours, TORCH: case.torch}
            label = f"{name}, {batch} x {TOKENS} rows, {name_of_dtype}"
            fine.append(compare(sheet, label, case.inputs, ways, case.truth, ALLOWED[dtype], check))
    return all(fine)


if __name__ == "__main__":
    run_all(run)
