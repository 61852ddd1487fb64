"""Matrix products in half precision on a CPU, whose library compiles a kernel for every number of rows that it meets."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

# Rows are multiplied in blocks of multiples of these, and the last of them filled up to a multiple of FILLED: the library
# keeps 1,024 kernels, and to compile one takes milliseconds, as long as the product itself.
UNITS = (1024, 64)
FILLED = 16


class RowBlock(NamedTuple):
    """Rows ``begin`` to ``end`` of a matrix, multiplied as ``rows`` rows, some of which may be filling."""

    begin: int
    end: int
    rows: int


def row_blocks(count: int) -> list[RowBlock]:
    """Blocks that cover ``count`` rows in order; few numbers of rows occur in all of them, whatever the counts."""
    blocks, begin = [], 0
    for unit in UNITS:
        end = begin + (count - begin) // unit * unit
        if end > begin:
            blocks.append(RowBlock(begin, end, end - begin))
        begin = end
    if begin < count:
        blocks.append(RowBlock(begin, count, math.ceil((count - begin) / FILLED) * FILLED))
    return blocks


def in_blocks(x: Tensor) -> bool:
    """Whether the rows of ``x`` are multiplied in blocks."""
    on_cpu = x.device.type == "cpu" and x.element_size() == 2
    return on_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` where no gradient is wanted: ``[rows, outputs]``, in the type of ``x``.

    Args:
        x: ``[rows, inputs]``.
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
    """
    if not in_blocks(x):
        return linear(x, weight, bias)
    blocks = row_blocks(x.shape[0])
    if len(blocks) == 1 and blocks[0].rows == x.shape[0]:
        return linear(x, weight, bias)
    out = x.new_empty(x.shape[0], weight.shape[0])
    for begin, end, rows in blocks:
        part, into = x[begin:end], out[begin:end]
        if rows > end - begin:
            filled = x.new_zeros(rows, x.shape[1])
            filled[: end - begin] = part
            into.copy_(linear(filled, weight, bias)[: end - begin])
        elif bias is None:
            torch.mm(part, weight.t(), out=into)
        else:
            torch.addmm(bias, part, weight.t(), out=into)
    return out
