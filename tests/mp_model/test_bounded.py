"""Layers that know bounds alone give the answers of the engine, however wide the bounds are."""

from __future__ import annotations

import pytest
import torch

from mp_kernels import Ragged
from mp_model import schedule
from mp_model.backbones import PackedInputs
from mp_model.bounded import Board, Held, can_be_bounded, run_bounded_embeddings, run_bounded_layer
from mp_model.engine import Pyramid
from support import tiny
from support.pyramids import LAYERS, calibrated

LENGTHS = (17, 1, 9, 2)
BATCH = tiny.samples(LENGTHS)
GARBAGE = 7  # a word that is there where nobody is


def with_room(inputs: PackedInputs, rows: int, samples: int) -> PackedInputs:
    """The same inputs in buffers with room for more rows and samples, and with garbage in it."""
    room = rows - inputs.tokens
    starts = inputs.words.cu_seqlens
    starts = torch.cat([starts, starts[-1:].expand(samples)])
    words, types, positions = (
        torch.cat([x, torch.full((room,), fill)])
        for x, fill in ((inputs.words.values, GARBAGE), (inputs.token_types, 1), (inputs.positions, 0))
    )
    return PackedInputs(Ragged(words, starts, inputs.words.max_seqlen), types, positions, inputs.positions_end)


def narrowed(held: Held, rows: int) -> Held:
    """The same samples with less room for rows."""
    batch = held.batch
    positions = None if batch.positions is None else batch.positions[:rows]
    held.batch = Ragged(batch.values[:rows], batch.cu_seqlens, batch.max_seqlen, positions=positions)
    return held


def bounded(pyramid: Pyramid, inputs: PackedInputs, labels: int, room: int, samples: int, lag: int) -> Board:
    """All layers with bounds that lag behind the true counts by some layers."""
    count = torch.tensor([inputs.words.batch_size])
    held = Held.of(pyramid, with_room(inputs, inputs.tokens + room, samples), count)
    board = Board.empty(inputs.words.batch_size + samples, labels, LAYERS, held.batch.values)
    for part in board.parts[:3]:
        part.fill_(77)  # as if an earlier batch had been here
    held = run_bounded_embeddings(pyramid, held, board)
    counts = []
    for number in range(1, LAYERS + 1):
        counts.append(int(held.batch.cu_seqlens[-1]))
        if len(counts) > lag:
            held = narrowed(held, counts[-1 - lag] + room)
        held = run_bounded_layer(pyramid, number, held, board)
    return board


@torch.no_grad()
@pytest.mark.parametrize(
    ("pruning", "head", "exits", "room", "samples", "lag"),
    [
        ("nothing", "cls", False, 9, 3, 0),
        ("nothing", "pooled_from_0", True, 3, 2, 9),
        ("alive", "cls", True, 1, 0, 0),
        ("alive", "pooled_from_0", True, 40, 1, 1),
        ("alive", "fastbert", True, 9, 3, 9),
        ("alive", "disagreement", True, 3, 2, 1),
        ("alive", "cls", False, 9, 3, 1),
    ],
)
def test_stale_bounds(
    pruning: str, head: str, exits: bool, room: int, samples: int, lag: int, request: pytest.FixtureRequest
) -> None:
    model, thresholds, _ = calibrated(pruning, head)
    pyramid = model.pyramid(exit_threshold=list(thresholds.values()) if exits else "never")
    assert can_be_bounded(pyramid)
    inputs = model.base_model.pack(**BATCH.padded())
    request.getfixturevalue("on_triton")
    expected = schedule.run_batch(pyramid, inputs, model.num_labels)
    board = bounded(pyramid, inputs, model.num_labels, room, samples, lag)
    there = len(LENGTHS)
    assert torch.equal(board.exit_layer[:there], expected.exit_layer)
    torch.testing.assert_close(board.logits[:there], expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(board.uncertainty[:there], expected.uncertainty, atol=1e-5, rtol=0)
    assert (board.logits[there:] == 77).all(), "somebody wrote where nobody is"
    assert (board.nan_rows == -1).all()
    entered = {step.layer: step for step in expected.steps}
    for step in board.steps(pyramid, there):
        other = entered.pop(step.layer)
        assert step.samples.tolist() == other.samples.tolist()
        assert step.entered.tolist() == other.entered.tolist()
        if other.how == "whole":
            assert step.survived.tolist() == (other.entered if other.survived is None else other.survived).tolist()
    assert not entered
