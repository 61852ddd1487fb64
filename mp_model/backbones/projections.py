"""Queries, keys and values in one product: their weights in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from .int8 import outputs_of


class Projections:
    """Parameters of the layers of queries, keys and values, each kind in one piece, for one product.

    The modules' parameters move into that piece, so there is no second copy, and weights that are changed in place (by an
    optimiser, by loading) are changed here too. Parameters that were replaced, moved or cast no longer lie here:
    :meth:`hold` says so, and the piece is made anew.

    Args:
        linears: the three layers; what they hold (a weight, a bias) has their outputs as its first dimension.
    """

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        parameters = _parameters_of(linears)
        # Made outside inference mode, since what is made inside could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self.pieces = {name: torch.cat(own) for name, own in parameters.items()}
            self.parts = {
                name: [_of_its_own(x) for x in piece.chunk(len(linears))] for name, piece in self.pieces.items()
            }
        for name, own in parameters.items():
            for parameter, part in zip(own, self.parts[name], strict=True):
                parameter.data = part
        self._own = list(chain.from_iterable(parameters.values()))
        self._all_parts = list(chain.from_iterable(self.parts.values()))

    def rows(self, outputs: slice) -> dict[str, Tensor]:
        """The parameters of a range of outputs, by their names."""
        return {name: outputs_of(piece, outputs) for name, piece in self.pieces.items()}

    def hold(self, linears: Sequence[nn.Module]) -> bool:
        """Whether the modules' parameters still lie in this piece."""
        parameters = _parameters_of(linears)
        same = parameters.keys() == self.parts.keys() and all(
            map(is_, chain.from_iterable(parameters.values()), self._own)
        )
        return same and self.hold_own()

    def hold_own(self) -> bool:
        """The same, where the modules' parameters are known to be the objects that they were."""
        try:
            return all(map(Tensor.is_set_to, self._all_parts, self._own))
        except RuntimeError:  # their dtype or device is not that of the piece
            return False


def _parameters_of(linears: Sequence[nn.Module]) -> dict[str, list[Any]]:
    # From the dictionary, since attributes of modules are found slowly.
    return {name: [linear._parameters[name] for linear in linears] for name in linears[0]._parameters}


def _of_its_own(view: Tensor) -> Tensor:
    """The same memory as a storage of its own: those who save weights drop all but one tensor of a storage."""
    return from_dlpack(to_dlpack(view))  # by way of a capsule: a tensor itself must be on the current device


def why_apart(linears: Sequence[nn.Module]) -> str | None:
    """The reason why queries, keys and values cannot lie in one piece; None: they can.

    Memory that somebody else knows as well (a bucket of a sharded optimiser, memory shared between processes) must not be
    left in silence.

    linears: the three linear layers, plain ones of one dtype, whose parameters lie in no piece yet.
    """
    for parameters in _parameters_of(linears).values():
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
