"""Processors that need not be here."""

from __future__ import annotations

import pytest
import torch

from mp_kernels import extension


def set_abilities(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    """Lets the processor seem to compute every precision fast, or float32 alone."""
    for home, name in (
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_vnni_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (extension, "multiplies_int8"),
    ):
        monkeypatch.setattr(home, name, lambda: able)
