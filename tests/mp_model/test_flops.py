"""Work counted from shapes: the paper's figures, counts by hand, and what the short cuts save."""

from __future__ import annotations

import pytest
import torch

from mp_model import PyramidBertConfig
from mp_model.exits import FastBertHead, PooledHead
from mp_model.flops import executed_flops, paper_flops, reported_tokens
from support import tiny

BERT_BASE = PyramidBertConfig()
DECIDING = tuple(range(1, 12))


def dense(tokens: float, layers: int = 12) -> dict[str, torch.Tensor]:
    """One sample of that many tokens, none of them pruned, that goes all the way."""
    counts = torch.tensor([[tokens] * layers])
    return {
        "tokens_per_layer": counts,
        "input_lengths": counts[:, 0],
        "exit_layer": torch.tensor([layers]),
    }


@pytest.mark.parametrize(
    ("tokens", "gflops"),
    [
        (52.4, 9.0),  # Magic Pyramid's Table 2: BERT on AG News
        (128, 22.35),
        (512, 96.63),
    ],
)
def test_bert_base_by_the_papers_formula(tokens: float, gflops: float) -> None:
    count = paper_flops(BERT_BASE, **dense(tokens)) / 1e9
    assert count.item() == pytest.approx(gflops, abs=0.01)


def test_papers_count_of_a_pruned_sample_by_hand() -> None:
    config = tiny.config(num_hidden_layers=3)
    d, f = 32, 64
    # 10 tokens enter, 7 survive layer 1; the sample leaves at layer 2, so that 7 tokens count in both halves of it.
    first = 2 * (4 * d * d * 10 + 2 * d * 10 * 10 + 2 * d * f * 7)
    second = 2 * (4 * d * d * 7 + 2 * d * 7 * 7 + 2 * d * f * 7)
    count = paper_flops(config, torch.tensor([[7, 7, 0]]), torch.tensor([10]), torch.tensor([2]))
    assert count.tolist() == [first + second]


def test_executed_count_of_a_decision_by_hand() -> None:
    config = tiny.config(num_hidden_layers=3)
    d, f, labels = 32, 64, 3
    keys_and_values = 2 * (2 * d * d * 10)
    first_token = 2 * (d * d + 2 * d * 10 + d * d + 2 * d * f)
    head = 2 * (d * d + d * labels)
    arguments = (torch.tensor([[10, 0, 0]]), torch.tensor([10]), torch.tensor([1]))
    assert executed_flops(config, *arguments, [1, 2]).tolist() == [keys_and_values + first_token + head]


@pytest.mark.parametrize("n", [55, 128])
def test_a_decision_costs_about_a_fifth_of_a_layer(n: int) -> None:
    leaves = (torch.tensor([[n] + [0] * 11]), torch.tensor([n]), torch.tensor([1]))
    share = executed_flops(BERT_BASE, *leaves, DECIDING) / paper_flops(BERT_BASE, *leaves)
    assert 0.15 < share.item() < 0.25


def test_the_last_layer_computes_only_cls() -> None:
    """Without exits, what is executed differs from the paper's count by layer 12's short cut alone, and the head."""
    n, d, f = 64, 768, 3072
    everything = paper_flops(BERT_BASE, **dense(n)).item()
    executed = executed_flops(BERT_BASE, *dense(n).values(), decided_layers=()).item()
    others = 2 * (n - 1) * (d * d + 2 * d * n + d * d + 2 * d * f)
    assert executed == everything - others + 2 * (d * d + d * BERT_BASE.num_labels)


@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
def test_counts_rise_with_the_layer_of_the_exit(head: str) -> None:
    config = tiny.config(num_hidden_layers=4, exit_head=head)
    exit_layer = torch.arange(1, 5)
    counts = (torch.arange(1, 5) <= exit_layer[:, None]) * 20
    lengths = torch.full((4,), 20)
    for flops in (
        paper_flops(config, counts, lengths, exit_layer),
        executed_flops(config, counts, lengths, exit_layer, [1, 2, 3]),
    ):
        assert (flops.diff() > 0).all()


def test_a_sample_that_leaves_before_layer_1_costs_its_head() -> None:
    config = tiny.config(exit_head="pooled", exit_layers=[0, 2])
    nothing = (torch.zeros(2, 4, dtype=torch.int64), torch.tensor([9, 30]), torch.tensor([0, 0]))
    assert paper_flops(config, *nothing).tolist() == [0, 0]
    assert executed_flops(config, *nothing, [0, 2]).tolist() == [2 * (64 * 32 + 32 * 3)] * 2


def test_closed_exits_cost_nothing() -> None:
    config = tiny.config(exit_head="pooled")
    sample = (torch.tensor([[9, 9, 9, 9]]), torch.tensor([9]), torch.tensor([4]))
    closed, one_open = (executed_flops(config, *sample, layers) for layers in ([], [2]))
    d, f = 32, 64
    first_token = 2 * (d * d + 2 * d * 9 + d * d + 2 * d * f)
    assert (one_open - closed).tolist() == [first_token + PooledHead.flops(config, torch.tensor([9])).item()]


def test_a_fastbert_head_pays_for_every_token_it_reads() -> None:
    config = tiny.config(exit_head="fastbert")
    d, width = 32, 128
    one, two = FastBertHead.flops(config, torch.tensor([1, 2])).tolist()
    assert two - one == 2 * (d * width + 2 * width * width + 2 * width)
    assert one == 2 * (d * width + 5 * width * width + 2 * width + 3 * width)


def test_tokens_in_the_layer_of_the_exit_are_those_that_entered() -> None:
    entered = torch.tensor([[10, 8, 5, 5], [6, 3, 0, 0], [12, 8, 5, 4], [7, 0, 0, 0]])
    reported = reported_tokens(entered, torch.tensor([2, 1, 4, 0]))
    assert reported.tolist() == [[8, 8, 0, 0], [6, 0, 0, 0], [8, 5, 4, 4], [0, 0, 0, 0]]
