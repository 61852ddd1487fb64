"""Bytes of the tensors that are alive at once, counted as operators make them, not by what the process holds."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the memory of tensors that this thread's operators make in the block; meta tensors have none.

    Attributes:
        peak: most bytes that were alive at once.
        made: dtype and shape of every tensor that an operator returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.made: set[tuple[torch.dtype, tuple[int, ...]]] = set()
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type != "meta":
                self.made.add((x.dtype, tuple(x.shape)))
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.counted:
            return
        self.counted.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.counted.discard(place)
        self.now -= size
