"""The launches to compile: every operator in the shapes of BERT, by dtype and head_dim."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from mp_kernels.triton import IMPLEMENTATIONS

from .compiling import TARGETS, Launch, launches_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD_DIMS = (16, 32, 64, 128)
PLACED_HEAD_DIMS = (32, 64)  # of models with a relative position bias or windows
BATCH = 32
HIDDEN = 768
ROWS = 2041  # 16 does not divide it, as most sums of lengths; kernels are not specialised for sums that it divides

Call = Callable[[], object]


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


CU_SEQLENS = _empty(BATCH + 1, dtype=torch.int32)
STAYS = _empty(BATCH, dtype=torch.bool)
INDEX = _empty(ROWS, dtype=torch.int64)
POSITIONS = _empty(ROWS, dtype=torch.int32)
REACH = 128


def attention_calls(dtype: torch.dtype, head_dim: int) -> dict[str, Call]:
    """Calls of attention: forward for every width of tile and for longer samples, for an exit decision, and backward."""
    heads = HIDDEN // head_dim
    heads_of = _empty(ROWS, heads, head_dim, dtype=dtype)
    by_head = _empty(heads, ROWS, dtype=torch.float32)
    forward, backward = IMPLEMENTATIONS["ragged_attention"], IMPLEMENTATIONS["ragged_attention_backward"]
    qkv, starts = (heads_of, heads_of, heads_of), (CU_SEQLENS, CU_SEQLENS)

    def with_importance(keys: int) -> Call:
        return lambda: forward(*qkv, *starts, STAYS, keys, 0.125, True)

    return {
        **{f"attention {keys}": with_importance(keys) for keys in (64, 128, 256, 512, 2048)},
        "decision 128": lambda: forward(*qkv, *starts, None, 128, 0.125, False),
        "attention backward": lambda: backward(heads_of, by_head, *qkv, by_head, *starts, 512, 0.125),
    }


def placed_calls(dtype: torch.dtype, head_dim: int) -> dict[str, Call]:
    """Calls of attention, forward and backward, with a relative position bias and in a window."""
    heads = HIDDEN // head_dim
    heads_of = _empty(ROWS, heads, head_dim, dtype=dtype)
    by_head = _empty(heads, ROWS, dtype=torch.float32)
    forward, backward = IMPLEMENTATIONS["ragged_attention"], IMPLEMENTATIONS["ragged_attention_backward"]
    qkv, starts = (heads_of, heads_of, heads_of), (CU_SEQLENS, CU_SEQLENS)

    def both(*places: object) -> Call:
        def call() -> None:
            forward(*qkv, *starts, STAYS, 512, 0.125, True, POSITIONS, POSITIONS, *places)
            backward(heads_of, by_head, *qkv, by_head, *starts, 512, 0.125, POSITIONS, POSITIONS, *places)

        return call

    bias, buckets = _empty(heads, 32, dtype=dtype), _empty(2 * REACH + 1, dtype=torch.int32)
    return {"attention with bias": both(bias, buckets), "attention in a window": both(None, None, 64)}


def other_calls(dtype: torch.dtype) -> dict[str, Call]:
    """Calls of the operators that do not depend on head_dim."""
    x, importance = _empty(ROWS, HIDDEN, dtype=dtype), _empty(12, ROWS, dtype=torch.float32)
    grown, width = _empty(ROWS, 4 * HIDDEN, dtype=dtype), _empty(HIDDEN, dtype=dtype)
    many, angles = _empty(12, 64 * ROWS, dtype=torch.float32), _empty(512, 32, dtype=torch.float32)
    padded = _empty(BATCH, 128, dtype=torch.int64)
    first, pooled = _empty(BATCH, HIDDEN, dtype=dtype), _empty(BATCH, 2 * HIDDEN, dtype=dtype)
    op = IMPLEMENTATIONS

    def head(classes: int, multi_label: bool = False) -> Call:
        dense, weight = _empty(HIDDEN, 2 * HIDDEN, dtype=dtype), _empty(classes, HIDDEN, dtype=dtype)
        return lambda: op["exit_head"](
            pooled, dense, width, weight, _empty(classes, dtype=dtype), None, 0.1, multi_label
        )

    def record(classes: int) -> Call:
        extents, samples = _empty(4, dtype=torch.int64), _empty(BATCH, dtype=torch.int64)
        logits, uncertainty = _empty(BATCH, classes, dtype=dtype), _empty(BATCH, dtype=torch.float32)
        tokens, seen = _empty(13, 2, BATCH, dtype=torch.int32), (extents[:1], extents, samples, CU_SEQLENS, CU_SEQLENS)
        board = (logits, uncertainty, samples, tokens, samples)
        return lambda: (
            op["record_answers"](*seen, logits, uncertainty, STAYS, 1, *board),
            op["record_answers"](*seen, None, None, None, 1, *board),
        )

    return {
        "mean over heads": lambda: op["mean_over_heads"](importance),
        "prune": lambda: op["prune_tokens"](importance, CU_SEQLENS, None, 0.01),
        "prune with exits": lambda: op["prune_tokens"](importance, CU_SEQLENS, STAYS, 0.01),
        "prune many": lambda: op["prune_tokens"](many, CU_SEQLENS, STAYS, 0.01),
        "prune rows": lambda: op["prune_rows"](x, importance, CU_SEQLENS, 0.01),
        "top k": lambda: op["top_k_tokens"](importance, CU_SEQLENS, None, _empty(BATCH, dtype=torch.int64)),
        "select samples": lambda: op["select_samples"](CU_SEQLENS, STAYS, ROWS),
        "measure padded": lambda: op["measure_padded"](padded, [padded] * 3),
        "measure mask": lambda: op["measure_padded"](padded.bool(), []),
        "pack mask": lambda: op["pack_padded"](padded.bool(), CU_SEQLENS, ROWS, []),
        "pack padded": lambda: op["pack_padded"](padded, CU_SEQLENS, ROWS, [padded] * 3),
        "gather": lambda: op["ragged_gather"]([x], INDEX),
        "gather backward": lambda: op["ragged_gather_backward"]([x], INDEX, INDEX, [ROWS]),
        "mean": lambda: op["ragged_mean"](x, CU_SEQLENS),
        "features of pairs": lambda: op["pair_features"](first, x, CU_SEQLENS, _empty(BATCH, dtype=torch.int64)),
        "add and norm": lambda: op["add_layer_norm"](x, None, x, None, width, width, 1e-12),
        "add pruned and norm": lambda: op["add_layer_norm"](x, None, x, INDEX, width, width, 1e-12),
        "embed and norm": lambda: op["add_layer_norm"](x, INDEX, x, INDEX, width, width, 1e-12),
        "bias and gelu": lambda: op["bias_gelu"](grown, _empty(4 * HIDDEN, dtype=dtype)),
        "gelu gate": lambda: op["gelu_gate"](grown),
        "rotary": lambda: op["rotary_embedding"](x.unflatten(1, (12, 64)), POSITIONS, angles, angles),
        "entropy": lambda: op["normalized_entropy"](first[:, :4]),
        "label entropy": lambda: op["label_entropy"](first[:, :28]),
        "exit head of 4": head(4),
        "exit head of 28 labels": head(28, multi_label=True),
        "exit head of 77": head(77),
        "record answers of 4": record(4),
        "record answers of 77": record(77),
    }


def launches(core: bool) -> Iterator[tuple[str, str, Launch]]:
    """Target, name and launch of each kernel to compile; with ``core``, for two targets and head_dim 64, without float16."""
    for target in ("sm_80", "sm_90") if core else TARGETS:
        seen = set()
        for dtype_name in ("bf16", "fp32") if core else DTYPES:
            dtype = DTYPES[dtype_name]
            calls = {f"{name} {dtype_name}": call for name, call in other_calls(dtype).items()}
            for head_dim in (64,) if core else HEAD_DIMS:
                of_heads = attention_calls(dtype, head_dim)
                if head_dim in PLACED_HEAD_DIMS:
                    of_heads |= placed_calls(dtype, head_dim)
                calls |= {f"{name} d{head_dim} {dtype_name}": call for name, call in of_heads.items()}
            for name, call in calls.items():
                for launch in launches_of(call, target):
                    same = json.dumps([launch.kernel.__name__, launch.signature, launch.constants, launch.aligned])
                    if same not in seen:
                        seen.add(same)
                        yield target, f"{name}: {launch.kernel.__name__}", launch


BUDGET = Path(__file__).with_name("budget.json")
