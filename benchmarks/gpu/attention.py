"""Attention with importance beside torch's SDPA and varlen attention, and the kernels that serve it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mp_kernels
import workload

from .agreement import ALLOWED
from .comparing import compare, draws, run_all
from .document import Sheet
from .plan import OURS

HEADS, HEAD_DIM = 12, 64
ROWS = 16384
LENGTHS = (16, 64, 128, 256, 512, 1024)
ONE_PASS_UP_TO = 128  # keys, in half types


def wrong_kernels(names: list[str], dtype: torch.dtype, longest: int) -> str | None:
    """Words for kernels other than those that must serve attention with importance; None: they are the right ones.

    One pass in half types while all keys fit a tile, blocks of keys and then their column means beyond, and always in
    float32.
    """
    ran = {name for name in names if name.startswith("attention_")}
    one_pass = dtype.itemsize == 2 and longest <= ONE_PASS_UP_TO
    right = ran == ({"attention_one_pass"} if one_pass else {"attention_streaming", "attention_column_means"})
    return None if right else f"kernels that should not serve {longest} keys in {dtype}: {sorted(names)}"


def ours(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Any:
    """Attention and importance."""
    return mp_kernels.ragged_attention(q, k, v, cu_seqlens, longest)


def ours_without_importance(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Attention alone, by the same operator."""
    return mp_kernels.ragged_attention(q, k, v, cu_seqlens, longest, need_importance=False)[0]


def truth(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Any:
    """Attention and importance, by the definition."""
    return mp_kernels.reference.ragged_attention(q, k, v, cu_seqlens, longest)


def sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """torch's SDPA; the samples are equally long, so nothing is padded."""
    batch = cu_seqlens.shape[0] - 1
    padded = [x.unflatten(0, (batch, longest)).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*padded).transpose(1, 2).flatten(0, 1)


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """torch's attention on packed rows, in half types."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)


def run(sheet: Sheet, name_of_dtype: str) -> bool:
    """Keeps the figures of a dtype, with 12 heads of 64, as BERT-base has them; returns whether all is well."""
    dtype = getattr(torch, name_of_dtype)
    device, drawn = draws(sheet, dtype)
    rows, longest_of = (64, LENGTHS[:2]) if sheet.dry else (ROWS, LENGTHS)
    samples = {f"{n} tokens": [n] * (rows // n) for n in longest_of}
    samples["lengths like AG News'"] = workload.ag_news_lengths(max(2, rows // 64))
    fine = []
    for name, lengths in samples.items():
        total, longest = sum(lengths), max(lengths)
        cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)

        def inputs(total: int = total, starts: Tensor = cu_seqlens, longest: int = longest) -> list[Any]:
            return [*drawn(total, 3, HEADS, HEAD_DIM).unbind(1), starts, longest]

        ways = {OURS: ours, "ours without importance": ours_without_importance}
        if len(set(lengths)) == 1:
            ways["torch SDPA"] = sdpa
        if dtype.itemsize == 2 and not sheet.dry:
            ways["torch varlen_attn"] = varlen
        check = functools.partial(wrong_kernels, dtype=dtype, longest=longest)
        fine.append(compare(sheet, f"{name}, {name_of_dtype}", inputs, ways, truth, ALLOWED[dtype], check))
    return all(fine)


if __name__ == "__main__":
    run_all(run)
