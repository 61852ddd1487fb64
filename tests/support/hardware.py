"""Triton kernels on a GPU for tensors of the CPU, so that tests written for the interpreter hold a device to the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from mp_kernels.triton import configurations

REASON = "a device does not stop a kernel as the interpreter does, or would spill"


def lend(monkeypatch: pytest.MonkeyPatch, device: str = "cuda") -> None:
    """Makes every kernel that is given tensors of the CPU run on ``device`` with copies, until ``monkeypatch`` is undone."""
    run = triton.runtime.JITFunction.run

    def elsewhere(self: Any, *arguments: Any, **options: Any) -> Any:
        memories = Memories(torch.device(device))
        moved = [memories.moved(x) if isinstance(x, Tensor) and not x.is_cuda else x for x in arguments]
        result = run(self, *moved, **options)
        memories.copy_back()
        return result

    monkeypatch.setattr(triton.runtime.JITFunction, "run", elsewhere)
    for name in ("architecture_of", "processors_of"):
        ask = getattr(configurations, name)
        monkeypatch.setattr(configurations, name, lambda _, ask=ask: ask(torch.device(device)))


class Memories:
    """Copies of the CPU's memory on a device: views of one storage stay that, strides and gaps as they were."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def moved(self, x: Tensor) -> Tensor:
        """The same view, of the copy of its storage."""
        storage = x.untyped_storage()
        _, copy = self.copies.setdefault(storage.data_ptr(), (storage, _copied(storage, self.device)))
        view = torch.empty(0, dtype=x.dtype, device=self.device)
        return view.set_(copy, x.storage_offset(), x.shape, x.stride())

    def copy_back(self) -> None:
        """Brings what the kernel wrote back."""
        for storage, copy in self.copies.values():
            storage.copy_(copy)


def _copied(storage: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
    copy = torch.UntypedStorage(storage.nbytes(), device=device)
    copy.copy_(storage)
    return copy
