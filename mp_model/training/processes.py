"""Several training processes, as ``torchrun`` and ``accelerate launch`` start them: one writes, the others wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


@contextmanager
def one_after_the_first() -> Iterator[bool]:
    """Runs the block in the first process, then in the others; gives whether this is the first.

    What the first one writes to disk is there for the others when their turn comes.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield state.is_main_process
    finally:
        if state.is_main_process:
            state.wait_for_everyone()
