"""Queries, keys and values in one product: their weights in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]


class Projections:
    """Weights and biases of queries, keys and values in one piece, for one product.

    The modules' parameters move into that piece, so there is no second copy, and weights that are changed in place (by an
    optimiser, by loading) are changed here too. Parameters that were replaced, moved or cast no longer lie here:
    :meth:`hold` says so, and the piece is made anew.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        # Made outside inference mode, since what is made inside could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self.weight, self.bias = (torch.cat(parameters) for parameters in _weights_and_biases(linears))
            self.parts = [_of_its_own(x) for piece in (self.weight, self.bias) for x in piece.chunk(len(linears))]
        weights, biases = _weights_and_biases(linears)
        for parameter, part in zip((*weights, *biases), self.parts, strict=True):
            parameter.data = part

    def hold(self, linears: Sequence[nn.Linear]) -> bool:
        """Whether the modules' parameters still lie in this piece."""
        weights, biases = _weights_and_biases(linears)
        return all(map(_is_same_memory, self.parts, (*weights, *biases)))


def _weights_and_biases(linears: Sequence[nn.Linear]) -> tuple[list[Tensor], list[Tensor]]:
    # From the dictionary, since attributes of modules are found slowly.
    parameters: list[dict[str, Any]] = [linear._parameters for linear in linears]
    return [own["weight"] for own in parameters], [own["bias"] for own in parameters]


def _of_its_own(view: Tensor) -> Tensor:
    """The same memory as a storage of its own: those who save weights drop all but one tensor of a storage."""
    return from_dlpack(to_dlpack(view))  # by way of a capsule: a tensor itself must be on the current device


def _is_same_memory(x: Tensor, y: Tensor) -> bool:
    return x.layout == y.layout and x.dtype == y.dtype and x.device == y.device and x.is_set_to(y)


def why_apart(linears: Sequence[nn.Linear], projections: Projections | None) -> str | None:
    """The reason why queries, keys and values cannot lie in one piece; None: they can.

    Memory that somebody else knows as well (a bucket of a sharded optimiser, memory shared between processes) must not be
    left in silence.

    Args:
        linears: the three linear layers, plain ones of one dtype.
        projections: the piece that they were put into before, if any.
    """
    if projections is not None and projections.hold(linears):
        return None
    for parameters in _weights_and_biases(linears):
        if any(parameter.layout is not torch.strided for parameter in parameters):
            return "queries, keys or values are sparse"
        if len({(parameter.shape, parameter.device) for parameter in parameters}) > 1:
            return "queries, keys and values differ in shape or device"
        if len({parameter.data_ptr() for parameter in parameters}) < len(parameters):
            return "queries, keys and values share weights"
        for parameter in parameters:
            alone = parameter.untyped_storage().nbytes() == parameter.nbytes
            if not alone or (parameter.device.type == "cpu" and parameter.is_shared()):
                return "queries, keys or values lie in memory that is not theirs alone"
    return None
