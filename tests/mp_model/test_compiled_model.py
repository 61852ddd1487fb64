"""torch.compile of a whole model: its graph is left before a pyramid, where the host reads sizes, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from support import tiny

BATCH = tiny.samples((9, 1, 17, 4, 12, 6))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("head", ["pooled", "pair"])
def test_answers_and_graph_breaks(head: str, backend: str, decided_late: None) -> None:
    model = tiny.classifier(num_hidden_layers=2, exit_head=head, exit_layers=[0, 1])
    tiny.calibrate_pruning(model, BATCH)
    thresholds = tiny.calibrate_exits(model, BATCH)
    expected = model(**BATCH.padded(), exit_threshold=thresholds)
    assert len(expected.exit_layer.unique()) > 1

    torch.compiler.reset()
    counters.clear()
    got = torch.compile(model, backend=backend)(**BATCH.padded(), exit_threshold=thresholds)
    reasons = {reason.splitlines()[0] for reason in counters["graph_break"]}
    torch.compiler.reset()
    if torch.__version__ < (2, 13):  # it reports the function, too, that is left for these reasons
        reasons = {reason for reason in reasons if not reason.startswith("SKIPPED INLINING <code object run_batch ")}
    assert reasons == {"Call to `torch._dynamo.graph_break()`", "Data dependent operator"}
    for name in ("exit_layer", "tokens_per_layer", "executed_flops"):
        assert torch.equal(got[name], expected[name]), name
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
