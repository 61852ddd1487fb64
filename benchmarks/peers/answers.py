"""The rule by which a way's answers are the reference's, as far as its precision lets them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ERROR_ALLOWED = {"float32": 1e-3, "bfloat16": 0.1}
COSINE_WANTED = {"int8": 0.9}
AGREEMENT_WANTED = 0.9  # of a fitted pyramid, which may differ where it leaves early

RULE = (
    "A figure counts only if its answers are those of transformers in float32 on the same batches. Logits are compared "
    "after the mean over all texts is taken off, so that what is the same for every text counts for nothing. Their "
    f"relative error may be {ERROR_ALLOWED['float32']:g} in float32 and {ERROR_ALLOWED['bfloat16']:g} in bfloat16; int8 "
    f"needs a cosine of at least {COSINE_WANTED['int8']:g}, and its agreement is reported. A fitted pyramid must give "
    f"at least {AGREEMENT_WANTED:.0%} of the texts the same label."
)


def comparison(logits: Tensor, true: Tensor) -> dict[str, float]:
    """Distance of logits ``[texts, labels]`` from the reference's.

    ``error``: relative, without what all texts have in common; ``cosine``: likewise; ``agreement``: share of same answers.
    """
    logits, true = logits.double(), true.double()
    middle = true.mean(0)
    found, wanted = (logits - middle).flatten(), (true - middle).flatten()
    return {
        "error": ((found - wanted).norm() / wanted.norm()).item(),
        "cosine": torch.nn.functional.cosine_similarity(found, wanted, dim=0).item(),
        "agreement": (logits.argmax(-1) == true.argmax(-1)).double().mean().item(),
    }


def why_not_counted(compared: dict[str, Any], precision: str) -> str | None:
    """The reason why answers do not pass for the reference's; None: they do. Numbers that are none never pass."""
    allowed, wanted = ERROR_ALLOWED.get(precision), COSINE_WANTED.get(precision)
    if allowed is not None and not compared["error"] <= allowed:
        return f"answers differ: relative error {compared['error']:.2g}, allowed {allowed:g}"
    if wanted is not None and not compared["cosine"] >= wanted:
        return f"answers differ: cosine {compared['cosine']:.3f}, at least {wanted:g} wanted"
    return None
