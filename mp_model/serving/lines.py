"""Answers as lines of JSON."""

from __future__ import annotations

import json
from dataclasses import fields

from .classifier import Answer


def line_of(answer: Answer | ValueError, scores: bool) -> str:
    """The line of an answer, or that of a row without a text: the same keys with nulls, and the error.

    Args:
        answer: the answer, or the error that says why there is none.
        scores: whether the probabilities of all labels are written.
    """
    if isinstance(answer, ValueError):
        keys = [field.name for field in fields(Answer) if scores or field.name != "scores"]
        values = {**dict.fromkeys(keys), "error": str(answer)}
    else:
        values = answer.as_dict(scores)
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
