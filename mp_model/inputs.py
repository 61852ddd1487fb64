"""The model's arguments, checked and packed: what enters the embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mp_kernels
from mp_kernels import Ragged
from mp_kernels.memory import read_by_host

from .backbones.forms import PackedInputs

ONE_TEXT = "this model's exits compare two texts (exit_head='pair'); give pairs"


def concatenate_inputs(parts: Sequence[PackedInputs]) -> PackedInputs:
    """Several packed batches as one, sample after sample; all of them hold ids, or all vectors."""
    if len(parts) == 1:
        return parts[0]
    return PackedInputs(
        concatenate([part.words for part in parts]),
        torch.cat([part.token_types for part in parts]),
        torch.cat([part.positions for part in parts]),
        max(part.positions_end for part in parts),
    )


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """Several packed batches as one, sample after sample; it comes from no padded batch."""
    befores = list(itertools.accumulate((part.values.shape[0] for part in parts), initial=0))
    starts = [part.cu_seqlens[:-1] + before for part, before in zip(parts, befores, strict=False)]
    middles = [
        None if part.middles is None else part.middles + before for part, before in zip(parts, befores, strict=False)
    ]
    return Ragged(
        torch.cat([part.values for part in parts]),
        torch.cat([*starts, torch.full_like(starts[0][:1], befores[-1])]),
        max(part.max_seqlen for part in parts),
        positions=cat_all([part.positions for part in parts]),
        middles=cat_all(middles),
    )


def cat_all(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The tensors one after the other; None where all of them are None."""
    found = there(*tensors)
    return torch.cat(found) if found else None


def there(*tensors: Tensor | None) -> list[Tensor]:
    """The tensors that are not None."""
    return [x for x in tensors if x is not None]


class Bounded(NamedTuple):
    """An integer argument and its range.

    Attributes:
        name: the argument's name, for messages.
        values: int ``[batch, width]``; None for positions that are counted.
        end: number of values that it may have, from 0.
        hint: way out, for messages.
    """

    name: str
    values: Tensor | None
    end: int
    hint: str = ""


@dataclass
class PaddedInputs:
    """A padded batch whose shapes and dtypes are right.

    Attributes:
        words: int ids ``[batch, width]``, or vectors ``[batch, width, hidden]``.
        attention_mask: ``[batch, width]``, 0 at padding.
        token_types: int ``[batch, width]``; None: all 0.
        positions: int ``[batch, width]``; None: counted from each sample's first real token.
        first_position: the position of that token.
        sides: int ``[batch, width]``, 0 for tokens of the first text and 1 or more for those of the second; None where
            nobody reads pairs, or nobody said.
    """

    words: Tensor
    attention_mask: Tensor
    token_types: Tensor | None
    positions: Tensor | None
    first_position: int
    sides: Tensor | None = None

    @property
    def keep(self) -> Tensor:
        """bool ``[batch, width]``, the real tokens."""
        return self.attention_mask != 0

    def without_padding(self) -> tuple[Tensor, Tensor, Tensor]:
        """Words, token types and positions with 0 in the place of what padding holds, which may be anything."""
        keep, positions = self.keep, self.positions
        if positions is None:
            columns = torch.arange(self.first_position, self.first_position + keep.shape[1], device=keep.device)
            positions = columns - first_columns(keep).unsqueeze(1)
        types = torch.zeros_like(positions) if self.token_types is None else self.token_types
        words = self.words if self.words.is_floating_point() else torch.where(keep, self.words, 0)
        return words, torch.where(keep, types, 0), torch.where(keep, positions, 0)

    def bounded(self, config: Any) -> list[Bounded]:
        """The integers that must keep to a range, the positions first."""
        bounded = [Bounded("position_ids", self.positions, config.max_position_embeddings, "; truncate the text")]
        types = self.token_types if self.sides is None else self.sides
        if types is not None:
            bounded.append(Bounded("token_type_ids", types, config.token_types))
        if not self.words.is_floating_point():
            bounded.append(
                Bounded("input_ids", self.words, config.vocab_size, "; was it made by this model's tokenizer?")
            )
        return bounded


def padded_inputs(
    config: Any,
    dtype: torch.dtype,
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> PaddedInputs:
    """A model's arguments, checked as far as that needs no values.

    Positions count from each sample's first real token, so the side of the padding changes nothing.

    Args:
        config: the model's configuration.
        dtype: the embeddings' dtype, which ``inputs_embeds`` must have.
        input_ids: int ``[batch, width]``; or ``inputs_embeds``, floating ``[batch, width, hidden]``.
        attention_mask: ``[batch, width]``, 1 for real tokens; None: all are real.
        token_type_ids: int ``[batch, width]``; None: all 0. Where exits read pairs, they tell the two texts apart, of a
            backbone without token types too.
        position_ids: int ``[batch, width]`` or ``[1, width]``; None: counted.

    Raises:
        ValueError: an argument of a wrong shape or dtype; the message names it.
    """
    source = _checked_source(config, dtype, input_ids, inputs_embeds)
    shape, device = source.shape[:2], source.device
    if attention_mask is None:
        attention_mask = torch.ones(shape, dtype=torch.bool, device=device)
    _check_shape("attention_mask", attention_mask, shape)
    if position_ids is None:
        positions = None
    elif config.backbone.placed:
        raise ValueError(
            f"position_ids cannot be chosen for {config.backbone.model_type}, whose attention counts tokens itself; leave "
            "them out"
        )
    else:
        _check_shape("position_ids", position_ids, shape, (1, shape[1]))
        _check_integers("position_ids", position_ids)
        positions = position_ids.expand(shape)
    if token_type_ids is not None:
        _check_shape("token_type_ids", token_type_ids, shape)
        _check_integers("token_type_ids", token_type_ids)
    sides = token_type_ids if config.reads_pairs else None
    if sides is not None and config.backbone.token_types(config) == 1:
        token_type_ids = None
    first_position = config.backbone.first_position(config)
    return PaddedInputs(source, attention_mask, token_type_ids, positions, first_position, sides)


def first_columns(keep: Tensor) -> Tensor:
    """int64 ``[batch]``, the column of each sample's first real token; keep: bool ``[batch, width]``."""
    return keep.byte().argmax(1) if keep.shape[1] else torch.zeros_like(keep.sum(1))


def pack_inputs(config: Any, inputs: PaddedInputs, of_pairs: bool = False) -> PackedInputs:
    """Takes the padding out of a batch.

    of_pairs: whether exits will read where each sample's second text begins.

    Raises:
        ValueError: a value outside its range, a sample without a token, or without a second text where that is asked for;
            the message names the argument.
    """
    extents = checked_values(config, inputs, of_pairs)
    ids = None if inputs.words.is_floating_point() else inputs.words
    xs = [x for x in (ids, inputs.token_types, inputs.positions) if x is not None]
    rows, places, packed = mp_kernels.pack_padded(inputs.attention_mask, extents.cu_seqlens, extents.total, xs)
    columns = iter(packed.unbind())
    values = inputs.words.flatten(0, 1)[rows] if ids is None else next(columns)
    types = torch.zeros_like(rows) if inputs.token_types is None else next(columns)
    if inputs.positions is None:
        positions = places + inputs.first_position if inputs.first_position else places
    else:
        positions = next(columns)
    words = Ragged(values, extents.cu_seqlens, extents.longest, rows, inputs.words.shape[1])
    if of_pairs:
        words.middles = words.cu_seqlens[1:] - _of_second_text(inputs).sum(1)
    return PackedInputs(words, types, positions, extents.positions_end)


def _of_second_text(inputs: PaddedInputs) -> Tensor:
    """bool ``[batch, width]``: the tokens of each sample's second text."""
    if inputs.sides is None:
        raise ValueError(
            "token_type_ids must tell two texts apart for exits with exit_head='pair', 0 for the first and its special "
            "tokens, 1 for the second; got none: give them, or close the exits with exit_threshold='never'"
        )
    return inputs.keep & (inputs.sides != 0)


class Extents(NamedTuple):
    """The starts of a padded batch's samples, its real tokens, the longest sample's, and the end of their positions."""

    cu_seqlens: Tensor
    total: int
    longest: int
    positions_end: int


def checked_values(config: Any, inputs: PaddedInputs, of_pairs: bool = False) -> Extents:
    """All that the host must know of a padded batch, in one read.

    of_pairs: whether each sample must have a second text.

    Raises:
        ValueError: a sample without a token, or without a second text; a value outside its range, at a real token.
    """
    bounded = inputs.bounded(config)
    read = [x.values for x in bounded if x.values is not None]
    cu_seqlens, extents = mp_kernels.measure_padded(inputs.attention_mask, read)
    if inputs.attention_mask.shape[0] == 0:
        return Extents(cu_seqlens, 0, 0, 0)
    if not of_pairs:
        return understood(read_by_host(extents), bounded, cu_seqlens, inputs.first_position)
    seconds = _of_second_text(inputs).sum(1)
    *facts, fewest, single_row = read_by_host(torch.cat([extents, torch.stack([seconds.amin(), seconds.argmin()])]))
    found = understood(facts, bounded, cu_seqlens, inputs.first_position)
    if fewest == 0:
        raise ValueError(
            f"token_type_ids has no 1 in row {single_row}, and exits with exit_head='pair' compare two texts; give pairs, "
            "with a tokenizer by mp_model.checkpoints.tokenizers.load_tokenizer, or close the exits with "
            "exit_threshold='never'"
        )
    return found


def understood(facts: Sequence[int], bounded: Sequence[Bounded], cu_seqlens: Tensor, first_position: int) -> Extents:
    """The sizes of a padded batch, from what :func:`mp_kernels.measure_padded` says of it.

    Args:
        facts: its extents, of ``bounded`` without positions that are counted.
        bounded: the integers that must keep to a range, the positions first.
        cu_seqlens: the starts of the samples.
        first_position: the position of a sample's first token, where they are counted.

    Raises:
        ValueError: a value outside its range, a sample without a token.
    """
    total, longest, shortest, shortest_row, span, *extremes = facts
    if shortest == 0:
        raise ValueError(
            f"attention_mask has no token in row {shortest_row}; every sample needs at least [CLS], drop the row"
        )
    if bounded[0].values is None:
        extremes = [0, first_position + span - 1, *extremes]
    for x, lowest, highest in zip(bounded, extremes[::2], extremes[1::2], strict=True):
        if lowest < 0 or highest >= x.end:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{x.name} must lie in 0..{x.end - 1}; got {wrong}{x.hint}")
    return Extents(cu_seqlens, total, longest, extremes[1] + 1)


def _checked_source(config: Any, dtype: torch.dtype, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The ids or the vectors of the words, whichever were given."""
    if input_ids is None and inputs_embeds is None:
        raise ValueError("give either input_ids or inputs_embeds; got none")
    if inputs_embeds is None:
        if input_ids is None or not _is_integer_tensor(input_ids) or input_ids.dim() != 2:
            raise ValueError(f"input_ids must be int64 or int32 [batch, width]; got {_describe(input_ids)}")
        return input_ids
    if input_ids is not None:
        raise ValueError("give either input_ids or inputs_embeds; got both")
    fits = (
        isinstance(inputs_embeds, Tensor)
        and inputs_embeds.dtype == dtype
        and inputs_embeds.dim() == 3
        and inputs_embeds.shape[2] == config.backbone.embedded_width(config)
    )
    if not fits:
        wanted = f"{str(dtype).removeprefix('torch.')} [batch, width, {config.backbone.embedded_width(config)}]"
        raise ValueError(f"inputs_embeds must be {wanted} like the model; got {_describe(inputs_embeds)}")
    return inputs_embeds


def _check_shape(name: str, x: Any, *shapes: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor) or tuple(x.shape) not in [tuple(shape) for shape in shapes]:
        raise ValueError(f"{name} must be [batch, width] like the input, {list(shapes[0])}; got {_describe(x)}")


def _check_integers(name: str, x: Any) -> None:
    if not _is_integer_tensor(x):
        raise ValueError(f"{name} must be int64 or int32; got {_describe(x)}")


def _is_integer_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.int64, torch.int32)


def _describe(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def pack_tokens(
    config: Any,
    ids: np.ndarray,
    types: np.ndarray | None,
    lengths: np.ndarray,
    device: torch.device | str = "cpu",
) -> PackedInputs:
    """Packed inputs of token ids that were never padded.

    Args:
        config: the model's configuration.
        ids: int64 ``[total]``, the samples' word-piece ids back to back.
        types: int64 ``[total]``, their token types; None: all 0. Where exits read pairs, each sample has 1 in its second
            text, of a backbone without token types too.
        lengths: int64 ``[batch]``, tokens of each sample, at least 1.
        device: the model's device.

    Raises:
        ValueError: a sample without a token or with more than the model's positions, an id or a type outside its range; a
            single text where exits read pairs.
    """
    longest = int(lengths.max(initial=0))
    if longest > config.positions:
        raise ValueError(f"a text has {longest} tokens; the model has {config.positions} positions")
    if lengths.min(initial=1) < 1:
        raise ValueError("a text has no token; every sample needs at least [CLS]")
    if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
        wrong = int(ids.max() if ids.min() >= 0 else ids.min())
        raise ValueError(
            f"input_ids must lie in 0..{config.vocab_size - 1}; got {wrong}; was it made by this model's tokenizer?"
        )
    kinds = config.token_types
    if types is not None and types.size and types.max() >= kinds:
        raise ValueError(
            f"token_type_ids must lie in 0..{kinds - 1}; got {types.max()}; is the model for single texts?"
        )
    starts = np.zeros(lengths.shape[0] + 1, dtype=np.int32)
    np.cumsum(lengths, out=starts[1:])
    first = config.backbone.first_position(config)
    positions = np.arange(first, first + ids.shape[0]) - np.repeat(starts[:-1], lengths)

    def on_device(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device, non_blocking=True)

    words = Ragged(on_device(ids), on_device(starts), longest)
    if config.reads_pairs:
        of_second = np.zeros_like(lengths) if types is None else np.add.reduceat((types != 0).astype(int), starts[:-1])
        if of_second.min(initial=1) < 1:
            raise ValueError(ONE_TEXT)
        words.middles = on_device(starts[1:] - of_second)
    if types is None or config.backbone.token_types(config) == 1:
        types = np.zeros_like(ids)
    return PackedInputs(words, on_device(types), on_device(positions), first + longest)
