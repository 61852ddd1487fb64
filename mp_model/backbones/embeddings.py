"""Embeddings of words, places and types, summed and normalised, as BERT's are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Ragged

from .forms import PackedInputs, why_modules, why_modules_now
from .int8 import Int8Embedding

PLAIN = frozenset({nn.Embedding, Int8Embedding, nn.LayerNorm, nn.Dropout})

# Embeddings [batch, width, hidden] of words (ids, or vectors), token types and positions [batch, width].
Padded = Callable[[Tensor, Tensor, Tensor], Tensor]


def why_embeddings_called(embeddings: nn.Module, plain: frozenset[type], device: torch.device) -> str | None:
    """The reason why embeddings run in module form just now on tokens of a device; None: in prepared form.

    plain: types of modules whose weights say everything.
    """
    return why_modules_now(device) or why_modules((embeddings, *embeddings.children()), plain)


def word_rows(embeddings: Any, words: Tensor) -> tuple[Tensor, Tensor | None]:
    """Word embeddings as a table and the row of each token in it; None: the rows themselves.

    embeddings: the table; words: ids ``[total]``, or vectors ``[total, width]``.
    """
    if words.is_floating_point():
        return words, None
    if isinstance(embeddings, Int8Embedding):
        return embeddings(words.long()), None
    return embeddings.weight, words.long()


def embed_summed(embeddings: Any, inputs: PackedInputs) -> Tensor:
    """``[total, width]``: LayerNorm of the sum of word, position and, where there are any, token type.

    embeddings: plain modules ``word_embeddings``, ``position_embeddings``, ``LayerNorm``, and perhaps
    ``token_type_embeddings``.
    """
    words, ids = word_rows(embeddings.word_embeddings, inputs.words.values)
    end, norm = inputs.positions_end, embeddings.LayerNorm
    table, rows = embeddings.position_embeddings.weight[:end], inputs.positions
    types = getattr(embeddings, "token_type_embeddings", None)
    if types is not None:
        # Every sum of a type and a position once, so that each token adds a single row on its way into LayerNorm.
        table = (types.weight[:, None] + table).flatten(0, 1)
        rows = torch.add(rows, inputs.token_types, alpha=end)
    return mp_kernels.add_layer_norm(words, table, norm.weight, norm.bias, norm.eps, rows, x_index=ids)


def embed_through_padding(padded_form: Padded, inputs: PackedInputs) -> Tensor:
    """``[total, width]``, from modules that see a padded batch as in transformers.

    A hook that puts other vectors in the place of the embeddings (integrated gradients do) counts on its samples lying in
    the first dimension. Padding is word, type and position 0, and nobody reads what becomes of it.
    """
    places, width = padded_places(inputs.words)

    def padded(values: Tensor) -> Tensor:
        return mp_kernels.unpack(Ragged(values, inputs.words.cu_seqlens, inputs.words.max_seqlen, places, width))

    values = padded_form(*map(padded, (inputs.words.values, inputs.token_types, inputs.positions)))
    return mp_kernels.ragged_gather(values.flatten(0, 1), places)


def padded_places(batch: Ragged) -> tuple[Tensor, int]:
    """Places int64 ``[total]`` of a batch's rows in ``[batch * width, ...]``, and the width.

    They are those that it came from, or else as if it was padded on the right.
    """
    if batch.index is not None and batch.width is not None:
        return batch.index, batch.width
    total, width = batch.values.shape[0], batch.max_seqlen
    rows = torch.arange(total, device=batch.values.device)
    shifts = torch.arange(batch.batch_size, device=rows.device) * width - batch.cu_seqlens[:-1]
    return rows + torch.repeat_interleave(shifts, batch.lengths, output_size=total), width
