"""Single operators against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mp_kernels
import workload

HEADS, HEAD_DIM = 12, 64


def _packed(tokens: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k and v as slices of one packed projection ``[total, 3, heads, head_dim]``, and the starts of its samples."""
    batch = max(1, tokens // length)
    return workload.states(batch * length, 3, HEADS, HEAD_DIM), workload.cu_seqlens_of([length] * batch)


@pytest.mark.parametrize("length", [16, 32, 55, 64, 128, 256, 512])
def test_attention_against_sdpa(compare: Any, length: int) -> None:
    """Attention with importance against torch's without; the same sequences, equally long, nothing padded."""
    qkv, cu_seqlens = _packed(2048, length)
    q, k, v = qkv.unbind(1)
    padded = [x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v)]
    compare(
        f"torch's SDPA time over ours with importance, {length} tokens",
        {
            "torch": lambda: F.scaled_dot_product_attention(*padded),
            "ours": lambda: mp_kernels.ragged_attention(q, k, v, cu_seqlens, length),
        },
        target=1.3 if length == 128 else 1.0,
        rounds=31,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's attention on packed rows needs a CUDA device")
@pytest.mark.parametrize("length", [16, 55, 128, 256, 512, 2048])
def test_attention_against_varlen(compare: Any, length: int) -> None:
    """Attention with importance against torch's FlashAttention on packed rows without."""
    varlen = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    qkv, cu_seqlens = _packed(16384, length)
    q, k, v = (x.contiguous() for x in qkv.unbind(1))
    compare(
        f"torch's varlen attention over ours with importance, {length} tokens",
        {
            "torch": lambda: varlen(q, k, v, cu_seqlens, cu_seqlens, length, length),
            "ours": lambda: mp_kernels.ragged_attention(q, k, v, cu_seqlens, length),
        },
        rounds=31,
        repeats=5,
    )


@pytest.mark.parametrize("length", [55, 128, 512])
def test_importance_is_free(compare: Any, length: int) -> None:
    """Attention with importance against the same operator without."""
    qkv, cu_seqlens = _packed(2048, length)
    q, k, v = qkv.unbind(1)
    compare(
        f"attention with importance over attention without, {length} tokens",
        {
            "with": lambda: mp_kernels.ragged_attention(q, k, v, cu_seqlens, length),
            "without": lambda: mp_kernels.ragged_attention(q, k, v, cu_seqlens, length, need_importance=False),
        },
        target=1.05,
        at_most=True,
        rounds=31,
    )


def test_gather_against_copy(compare: Any) -> None:
    """The gather of four fifths of a batch's rows against a plain copy of as many bytes."""
    x = workload.states(1760, 768)
    every = torch.arange(1760, device=workload.DEVICE)
    index = every[every % 5 != 0]
    same_bytes = x[: index.shape[0]]  # out of the same memory, so that the caches favour neither
    compare(
        "plain copy's time over gather's, same bytes",
        {"copy": same_bytes.clone, "gather": lambda: mp_kernels.ragged_gather(x, index)},
        target=0.8,
        rounds=101,
        repeats=5,
    )


def test_add_layer_norm(compare: Any) -> None:
    """Addition and LayerNorm in one pass against torch's two."""
    x, residual = workload.states(1760, 768), workload.states(1760, 768)
    norm = torch.nn.LayerNorm(768).to(x.device, x.dtype)
    compare(
        "torch's add and LayerNorm over ours",
        {
            "torch": lambda: norm(x + residual),
            "ours": lambda: mp_kernels.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps),
        },
        rounds=51,
        repeats=3,
    )


def test_gelu(compare: Any) -> None:
    """The exact GELU against torch's."""
    x = workload.states(1760, 3072)
    compare("torch's GELU over ours", {"torch": lambda: F.gelu(x), "ours": lambda: mp_kernels.bias_gelu(x)}, rounds=51)
