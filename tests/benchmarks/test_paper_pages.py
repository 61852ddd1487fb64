"""The pages of results, and the README's first table, hold what the JSON says; what was not measured has no column."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from paper.report import PLACE, pages
from paper.summary import better_than_ours, readme_block, set_table, standing
from paper.tables import guarantees_table, losses_table

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "docs" / "results" / "results.json").read_text())


@pytest.fixture
def result() -> dict[str, Any]:
    """A measured set, without what only later measurements have."""
    copied = copy.deepcopy(DOCUMENT["backbones"]["minilm"]["ag_news"])
    return {key: value for key, value in copied.items() if key not in ("losses", "guarantees")}


def loss(score: float, lost: float, error: float, seeds: int = 1) -> dict[str, Any]:
    """The figures of a system, as :func:`paper.losses.losses` gives them, which saves half of a GFLOP."""
    row = {"seed": 0, "score": score, "lost": lost, "standard_error": error, "gflops": 0.5, "executed_gflops": 0.5}
    return {**row, "seeds": [row] * seeds, "spread": 0.25 if seeds > 1 else None}


def test_the_pages_are_their_figures() -> None:
    found = pages(DOCUMENT)
    for name, text in found.items():
        assert (ROOT / "docs" / name).read_text() == text, f"{name}: run `make paper`, or its step report"
    assert {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md")} == set(found) - {"results.md"}


def test_the_first_table_of_the_readme_is_its_figures() -> None:
    text = (ROOT / "README.md").read_text()
    assert (text.count(PLACE.begin), text.count(PLACE.end)) == (1, 1)
    assert PLACE.filled(text, readme_block(DOCUMENT)) == text


def test_the_readme_shows_twelve_layers_beside_the_paper(result: dict[str, Any]) -> None:
    larger = {**result, "about": {**result["about"], "model": "MPNet-base", "layers": 12}}
    six, both = (
        {"backbones": x}
        for x in ({"minilm": {"ag_news": result}}, {"minilm": {"ag_news": result}, "mpnet": {"ag_news": larger}})
    )
    assert readme_block(six)[0].startswith("MiniLM-L6 (6 layers) on AG News")
    assert not any("the paper's own figures" in line for line in readme_block(six))
    assert readme_block(both)[0].startswith("MPNet-base (12 layers) on AG News")
    assert sum("the paper's own figures, on BERT-base" in line for line in readme_block(both)) == 1
    assert readme_block(both)[-len(readme_block(six)) :] == readme_block(six)
    text = f"Before.\n{PLACE.begin}old\n{PLACE.end}After.\n"
    filled = PLACE.filled(text, readme_block(six))
    assert filled.startswith(f"Before.\n{PLACE.begin}MiniLM-L6")
    assert filled.endswith(f"\n{PLACE.end}After.\n")
    assert "old" not in filled
    assert PLACE.filled(filled, readme_block(six)) == filled
    assert PLACE.filled("No place.\n", readme_block(six)) == "No place.\n"


def test_what_was_not_measured_has_no_column(result: dict[str, Any]) -> None:
    heading = "|  | accuracy | points lost | x paper | x executed | x ms, sorted | x ms, as they come |"
    assert set_table(result)[0] == heading
    assert losses_table(result) == guarantees_table(result) == []
    del result["clock"]
    assert set_table(result)[0] == "|  | accuracy | points lost | x paper | x executed |"


def test_means_over_seeds_with_standard_errors(result: dict[str, Any]) -> None:
    dense = result["systems"]["bert"]["0.0"]["dense_gflops"]
    result["losses"] = {"bert": {"0.5": loss(0.9, 0.0, 0.0)}, "pyramid": {"0.5": loss(0.8951, 0.49, 0.2, seeds=2)}}
    found = standing(result, "pyramid")
    assert found is not None
    assert (found.score, found.loss, found.saved) == (0.8951, "0.49 ± 0.20", [f"{dense / 0.5:.2f}x"] * 2)
    assert "| `pyramid` | 0.5 | 89.51% | 0.49 ± 0.20 | 0.25 | 0.49 ± 0.20, 0.49 ± 0.20 |" in losses_table(result)[-2]
    whole = standing(result, "bert")
    assert whole is not None
    assert whole.loss == "0.00"


def test_broken_and_kept_promises_are_shown(result: dict[str, Any]) -> None:
    def seed(exceeded: float) -> dict[str, Any]:
        careful = {"0.5": {"exceeded": exceeded, "deepest": 0.75}}
        return {
            "draws": 200,
            "promised": 0.1,
            "careful": careful,
            "guaranteed": {"1.0": {"exceeded": 0.02, "given": 1.0}},
        }

    result["guarantees"] = {"pyramid": [seed(0.1), seed(0.2)]}
    assert set_table(result)[0].endswith("| exceeded |")
    rows = {line.split("`")[1]: line for line in set_table(result) if "`" in line}
    assert rows["pyramid"].endswith("| 15.0% |")
    assert rows["bert"].endswith("| - |")
    assert guarantees_table(result)[-2] == "| `pyramid` | 2 | 15.0% (at most 0.75) | 2.0% (set in 100%) |"
    text = pages({"backbones": {"minilm": {"ag_news": result}}})["results.md"]
    assert "Of 2 guarantees" in text
    assert "2 were exceeded in no more than the promised 10% of draws; the worst in 2.0%." in text


def test_the_page_says_where_something_else_is_better(result: dict[str, Any]) -> None:
    for kind in ("systems", "careful"):
        for name in result[kind].keys() - {"pyramid"}:
            result[kind][name]["0.5"]["executed_gflops"] = 100.0
    assert better_than_ours(result) == []
    result["systems"]["tfidf"] = copy.deepcopy(result["systems"]["pyramid"])
    result["careful"]["tfidf"] = copy.deepcopy(result["careful"]["pyramid"])
    result["careful"]["tfidf"]["0.5"]["executed_gflops"] /= 2
    assert better_than_ours(result) == ["tfidf"]
    text = pages({"backbones": {"minilm": {"ag_news": result}}})["results.md"]
    assert "with less work executed on 1 of 1 sets: AG News, MiniLM-L6 (`tfidf`)." in text
