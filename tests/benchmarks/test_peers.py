"""Other engines beside ours: only right answers count, what is measured is not measured again, the page is its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cpuinfo")

from peers import answers, document, files, measuring, page, plan, running, ways
from support import fits, processors, tiny, wordpiece

ROOT = Path(__file__).parents[2]
HERE = {"processor": "a processor", "torch": "2.13.0"}
FEW = ["transformers, float32", "ours, float32"]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command on tiny models, with its files in a folder; compilers, which take minutes, are not asked."""
    command = [sys.executable, "-m", "peers", "--dry", "--texts", "6", "--rounds", "2", "--batches", "3"]
    command += [
        "--figures",
        str(folder / "figures.json"),
        "--work",
        str(folder / "work"),
        "--output",
        str(folder / "page.md"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=500)


def opened(path: Path, here: dict[str, Any] = HERE, dry: bool = False) -> document.Document:
    kept = document.Document(path)
    kept.open(here, dry)
    return kept


def uncompiled() -> list[str]:
    return [name for name in ways.ways() if "compiled" not in name]


def asked(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--way", name)]


def test_every_engine_that_is_here_gives_the_same_answers(tmp_path: Path) -> None:
    ended = run(tmp_path, "--model", "base", "--no-memory", *asked(uncompiled()))
    assert ended.returncode == 0, ended.stderr
    known = json.loads((tmp_path / "figures.json").read_text())
    assert list(known["cases"]) == ["base, threads 1, batch 3, as they come", "base, threads 1, batch 3, sorted"]
    for case in known["cases"].values():
        assert list(case["ways"]) == sorted(uncompiled())
        for name, figure in case["ways"].items():
            refusable = name.startswith("ours") or name.endswith("bfloat16")
            if refusable and "this processor" in figure.get("left out", ""):
                continue  # a precision that this processor has no use for
            if figure.get("missing"):
                assert figure["left out"].startswith("not installed")
                continue
            assert "left out" not in figure, (name, figure)
            assert len(figure["seconds"]) == 2
            assert figure["error"] == 0 if name == ways.REFERENCE else figure["cosine"] > 0.9
    said = str(tmp_path / "figures.json"), str(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == page.page(known, *said)

    ended = run(tmp_path, "--model", "base", *asked(FEW))  # the cases are done, the memory is not
    assert ended.returncode == 0, ended.stderr
    after = json.loads((tmp_path / "figures.json").read_text())
    assert after["cases"] == known["cases"]
    assert sorted(after["memory"]["base"]["ways"]) == sorted(FEW)
    assert all(0 < x["before"] < x["loading"] for x in after["memory"]["base"]["ways"].values())


class Recorded(running.Runner):
    """A run whose steps are only written down."""

    def _step(self, do: str, threads: int, **more: Any) -> None:
        self.steps = [*getattr(self, "steps", []), (do, more.get("cases", more.get("names", self.names)))]


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    kept, done = opened(tmp_path / "figures.json"), plan.cases_of("base", 1, [8])
    kept.keep("cases", done[0].name, {"ways": {name: {"seconds": [1.0]} for name in FEW}})
    kept.keep("memory", "base", {"ways": {FEW[0]: {"running": 1.0}}})

    def steps(again: bool, names: list[str] = FEW) -> list[tuple[str, Any]]:
        runner = Recorded(kept, tmp_path, plan.Budget(4, 1), names, again)
        runner.model("base", 1, [8])
        runner.memory("base")
        return runner.steps

    second = FEW[1:]
    assert steps(again=False) == [("prepare", FEW), ("measure", done[1:]), ("prepare", second), ("memory", second)]
    assert ("measure", done) in steps(again=True)
    assert ("measure", done) in steps(again=False, names=[*FEW, "ours, int8"])


def test_a_fitted_pyramid_from_texts_to_answers(tmp_path: Path) -> None:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2, exit_layers=[])
    model.save_pretrained(tmp_path / "fitted")
    wordpiece.tokenizer().save_pretrained(tmp_path / "fitted")
    texts = fits.write_rows(tmp_path / "texts.tsv", 40, seed=0, names=("0", "1"))
    ended = run(
        tmp_path,
        *(
            "--pyramid",
            str(tmp_path / "fitted"),
            "--texts-file",
            str(texts),
            "--no-memory",
            "--model",
            "minilm",
            *asked(FEW),
        ),
    )
    assert ended.returncode == 0, ended.stderr
    part = json.loads((tmp_path / "figures.json").read_text())["fitted"]["fitted, threads 1"]
    assert (part["texts"], part["precision"]) == (40, "float32")
    assert sorted(part["ways"]) == ["ours fitted, float32", "ours, float32", "transformers, float32"]
    for figure in part["ways"].values():
        assert figure["agreement"] == 1  # it prunes nothing and has no exits
        assert figure["accuracy"] == part["ways"][ways.REFERENCE]["accuracy"]
        assert len(figure["apart"]) == len(figure["included"]) == 2
    assert "### fitted, threads 1" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--way", "a horse"), "no way is called 'a horse'"),
        (("--batches", "8,none"), "--batches takes whole numbers"),
        (("--pyramid", "a-folder"), "--pyramid and --texts-file go together"),
    ],
)
def test_an_error_of_the_users_is_one_line(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    ended = run(tmp_path, *options)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"peers: {said}")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "figures.json").exists()


class Fixed:
    """Stands for an engine: gives answers that are known."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.calls = logits, 0

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        return self.logits


def loaded(logits: torch.Tensor) -> ways.Loaded:
    return ways.Loaded(Fixed(logits), lambda: 0)


@pytest.mark.usefixtures("able_processor")
def test_answers_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways.Way, "missing", [])
    true = torch.randn(8, 4, dtype=torch.float64)
    close = true + 1e-6 * torch.randn(8, 4)
    engines = {
        ways.REFERENCE: loaded(true),
        "ONNX Runtime, float32": loaded(true + 0.1 * torch.randn(8, 4)),
        "ours, float32": loaded(close),
        "ours, bfloat16": loaded(true + 0.01 * torch.randn(8, 4)),
        "ONNX Runtime, int8": loaded(true.flip(0)),
        "ours, int8": loaded(true + 0.1 * torch.randn(8, 4)),
        "OpenVINO, float32": loaded(torch.full((8, 4), torch.nan)),
    }
    figures = measuring.measure_case(engines, [{}], rounds=3)
    counted = {name for name, figure in figures.items() if "seconds" in figure}
    assert counted == {ways.REFERENCE, "ours, float32", "ours, bfloat16", "ours, int8"}
    for name, figure in figures.items():
        assert ("left out" in figure) != (name in counted)
        assert engines[name].classify.calls == (4 if name in counted else 1)
    assert figures["ONNX Runtime, int8"]["left out"].startswith("answers differ: cosine")


def test_what_all_texts_have_in_common_is_no_agreement() -> None:
    own = torch.randn(6, 3)
    own -= own.mean(0)
    compared = answers.comparison(100 - own, 100 + own)
    assert compared["cosine"] == pytest.approx(-1, abs=1e-4)
    assert answers.why_not_counted(compared, "int8") is not None


def test_an_engine_that_fails_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no such operator\nand a long story")

    found = ways.ways()
    result, figure = measuring.attempt(found["transformers, bfloat16"], broken)
    assert result is None
    assert "bfloat16 is slower than float32" in figure["left out"]
    processors.set_abilities(monkeypatch, True)
    result, figure = measuring.attempt(found["transformers, bfloat16"], broken)
    assert (result, figure) == (None, {"left out": "RuntimeError: no such operator"})
    with pytest.raises(RuntimeError):
        measuring.attempt(found["ours, float32"], broken)


def test_ways_take_turns_and_each_begins() -> None:
    order: list[str] = []
    seconds = measuring.take_turns({name: (lambda name=name: order.append(name)) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_batches_hold_the_same_texts_in_either_order() -> None:
    def texts(length_sorted: bool) -> tuple[list[list[int]], int]:
        batches = plan.batches_of(plan.Case("base", 1, 8, length_sorted), 32, 30_000)
        rows = [
            ids[mask.bool()].tolist()
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        return sorted(rows), sum(batch["input_ids"].numel() for batch in batches)

    (sorted_rows, narrow), (rows, wide) = texts(True), texts(False)
    assert len(rows) == 32
    assert rows == sorted_rows
    assert narrow < wide
    assert sum(len(mask["attention_mask"]) for mask in plan.batches_of(plan.Case("base", 1, 32, True), 4, 300)) == 64


def test_figures_of_different_machines_do_not_mix(tmp_path: Path) -> None:
    opened(tmp_path / "figures.json").keep("cases", "a case", {"ways": {"ours, float32": {"seconds": [1.0]}}})
    for here, dry in (({**HERE, "processor": "another"}, False), ({**HERE, "torch": "2.14"}, False), (HERE, True)):
        with pytest.raises(ValueError, match="holds figures with another"):
            opened(tmp_path / "figures.json", here, dry)
    kept = opened(tmp_path / "figures.json", {**HERE, "openvino": "2026.4"})  # a package that has come changes nothing
    assert kept.is_done("cases", "a case", ["ours, float32"])
    assert not kept.is_done("cases", "a case", ["ours, float32", "ours, int8"])


def test_a_way_is_measured_once_its_packages_are_there(tmp_path: Path) -> None:
    kept = opened(tmp_path / "figures.json")
    for package, done in (("a_package_that_there_is_not", True), ("torch", False)):
        kept.keep("cases", "a case", {"ways": {"OpenVINO, int8": document.not_installed([package])}})
        assert kept.is_done("cases", "a case", ["OpenVINO, int8"]) == done
    kept.keep("cases", "a case", {"ways": {"OpenVINO, int8": document.left_out("it failed")}})
    assert kept.is_done("cases", "a case", ["OpenVINO, int8"])


def test_files_that_were_begun_are_made_again(tmp_path: Path) -> None:
    made = files.files_of("base", tmp_path, dry=True)
    (tmp_path / "base-dry" / "weights.part").mkdir(parents=True)
    (tmp_path / "base-dry" / "weights.part" / "half").touch()
    assert sorted(path.name for path in made.weights.iterdir()) == ["config.json", "model.safetensors"]


def test_a_step_that_fails_says_why(tmp_path: Path) -> None:
    runner = running.Runner(opened(tmp_path / "figures.json"), tmp_path, plan.Budget(4, 1, dry=True), FEW, again=False)
    with pytest.raises(RuntimeError, match=r"fitted of .*not-there failed: .*not-there"):
        runner.fitted(tmp_path / "not-there", tmp_path / "texts.tsv", 1)


MADE_UP = {
    "machine": {"processor": "a processor", "instructions": ["avx2", "avx512f"]},
    "dry": False,
    "settings": {"ours, int8": "its settings"},
    "cases": {
        "base, threads 1, batch 32, sorted": {
            "model": "base",
            "threads": 1,
            "batch_size": 32,
            "length_sorted": True,
            "rounds": 3,
            "texts": 64,
            "tokens": 100,
            "padded_tokens": 125,
            "ways": {
                "transformers, float32": {"error": 0, "cosine": 1, "agreement": 1, "seconds": [8.0, 6.0, 8.0]},
                "OpenVINO, float32": {"error": 1e-6, "cosine": 1, "agreement": 1, "seconds": [4.0, 4.0, 4.4]},
                "ONNX Runtime, float32": {"error": 2, "cosine": 0.1, "agreement": 0.25, "left out": "answers differ"},
                "ours, float32": {"error": 1e-6, "cosine": 1, "agreement": 1, "seconds": [2.0, 1.0, 2.0]},
                "ours, int8": {"error": 0.02, "cosine": 1, "agreement": 0.875, "seconds": [0.5, 0.5, 0.5]},
                "OpenVINO, int8": {"left out": "not installed: nncf", "missing": ["nncf"]},
            },
        }
    },
    "memory": {
        "base": {
            "ways": {
                "ours, float32": {"before": 400, "loading": 900, "running": 800, "weights": 418},
                "ours, int8": {"before": 400, "loading": 600, "running": 520, "weights": 110},
                "OpenVINO, int8": {"left out": "not installed: nncf", "missing": ["nncf"]},
            }
        }
    },
    "fitted": {
        "news, threads 1": {
            "texts": 100,
            "threads": 1,
            "precision": "int8",
            "why": "the exit threshold was tuned for it",
            "ways": {
                "transformers, float32": {
                    "agreement": 1,
                    "accuracy": 0.9,
                    "apart": [10.0, 12.0],
                    "included": [20.0, 20.0],
                },
                "ours fitted, int8": {
                    "agreement": 0.97,
                    "accuracy": 0.895,
                    "apart": [0.5, 0.5],
                    "included": [1.0, 1.0],
                },
            },
        }
    },
}


def test_the_page_says_what_the_figures_say() -> None:
    text = page.page(MADE_UP)
    for line in (
        "Machine: processor a processor, instructions avx2 avx512f.",
        "| transformers, float32 | 8.0 | 0.0e+00 | 100.0% |",
        "| OpenVINO, float32 | 16.0 | 1.0e-06 | 100.0% |",
        "| ONNX Runtime, float32 | not counted | 2.0e+00 | 25.0% |",
        "| OpenVINO, int8 | not counted |  |  |",
        "| ours, int8 | 128.0 | 2.0e-02 | 87.5% |",
        "- OpenVINO, int8 is not counted where it says so: not installed: nncf.",
        "- ONNX Runtime, float32 is not counted where it says so: answers differ.",
        "| the best peer in float32 | **2.20** (2.00 to 4.00) OpenVINO, float32 |",
        "| ours in float32, in int8 | **4.00** (2.00 to 4.00) |",
        "| ours, int8 | 110 | 200 | 120 | 0.30 |",
        "| OpenVINO, int8 | not measured: not installed: nncf |  |  |  |",
        "| transformers, float32 | 9.1 | **22.00** (20.00 to 24.00) | 5.0 | **20.00** (20.00 to 20.00) | 90.00% | 100.00% |",
        "| ours fitted, int8 | 200.0 |  | 100.0 |  | 89.50% | 97.00% |",
        "| ours, int8 | its settings |",
    ):
        assert line in text.splitlines()
    assert "the best peer in int8" not in text  # there is none that counts
    assert "MiniLM" not in text
    assert "dry run" not in text
    assert "A dry run on tiny models" in page.page({**MADE_UP, "dry": True})


def test_the_page_without_figures_claims_none() -> None:
    assert "Nothing has been measured yet" in page.page(None)
    assert page.page({**MADE_UP, "cases": {}, "memory": {}, "fitted": {}}) == page.page(None)


@pytest.mark.parametrize("kind", ["", "-avx512", "-avx2"])
def test_the_page_is_its_figures(kind: str) -> None:
    figures, output = f"benchmarks/peers/figures{kind}.json", f"docs/peers{kind}.md"
    known = document.Document(ROOT / figures).read()
    assert known is not None
    assert (ROOT / output).read_text() == page.page(known, figures, output)
    command = "make peers" if not kind else f'make peers OPTIONS="--figures {figures} --output {output}"'
    assert f"```bash\n{command}\n```" in page.page(None, figures, output)
