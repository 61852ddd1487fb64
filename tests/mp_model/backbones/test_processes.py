"""Two processes train one model: each with all weights, or with the weights spread over both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.two_processes import (
    OBJECTIVES,
    SPREADS,
    answers_and_weights,
    classifier,
    half,
    train,
    whole_weights,
)

# The package's own folder comes first in the path: if the package is installed in editable mode, its name would otherwise
# import the folder tests/mp_model.
PROGRAM = f"""
import importlib.util, pathlib, sys
package = pathlib.Path(importlib.util.find_spec("mp_model").origin).parent
sys.path += [str(package.parent), {str(Path(__file__).parents[2])!r}]
from support import two_processes
two_processes.main(pathlib.Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes came to."""
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


# What each objective does not train.
UNTRAINED = {
    "joint exits": lambda name: False,
    "frozen exits": lambda name: False,
    "thresholds alone": lambda name: name != "thresholds",
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str, outcomes: list[dict[str, Any]]) -> None:
    """Nobody waits for gradients of what has no part in the loss, and no weight decay shrinks it."""
    module = OBJECTIVES[name]()
    before = {name: weight.clone() for name, weight in whole_weights(module).items()}
    after = train(module, [half(0), half(1)])
    for outcome in outcomes:
        # The slope of soft pruning, one over its temperature, makes more of rounding.
        torch.testing.assert_close(outcome[name], after, atol=5e-5, rtol=1e-5)
    untrained = UNTRAINED.get(name, lambda name: ".exits." in name)
    assert {name for name in after if torch.equal(after[name], before[name])} == set(filter(untrained, after))


@pytest.mark.parametrize("name", SPREADS)
def test_answers_and_training(name: str, outcomes: list[dict[str, Any]]) -> None:
    """The model by its own loss, with inference between the steps; exit heads have no part in either."""
    model = classifier()
    before = {name: weight.clone() for name, weight in whole_weights(model).items()}
    answers, weights = answers_and_weights(model, model, [half(0), half(1)])
    assert (answers[0][0] - answers[-1][0]).abs().max() > 0.1
    unchanged = {name for name, weight in weights.items() if torch.equal(weight, before[name])}
    assert unchanged == {name for name in weights if name.startswith("exits.")}
    for rank, outcome in enumerate(outcomes):
        own = [[logits[rank]] for logits in answers]
        torch.testing.assert_close(outcome[name], (own, weights), atol=1e-5, rtol=1e-5)
