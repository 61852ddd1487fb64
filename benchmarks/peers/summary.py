"""The short of the pages: ours over the best other engine, a line for each processor that figures are kept of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mp_model.checkpoints.precisions import PRECISIONS

from .fitted import FITTED
from .page import best_peer, precision_of, ratios_of, table
from .plan import MODELS, ORDERS
from .ways import OURS, REFERENCE

HERE = Path(__file__).parent
BATCH_SIZE = 32
BASE, QUANTISED = f"{OURS}, float32", "ONNX Runtime, int8"
BESIDE_FITTED = (REFERENCE, QUANTISED, "OpenVINO, int8")
PROCESSORS = {"avx2": "AVX2 alone", "avx512_bf16": "AVX-512 VNNI and BF16", "amx": "AMX"}  # by the build of our kernels
HEAD = f"""Measured by `make peers`, on a processor of each kind. Texts a second of ours over those of the fastest of \
ONNX Runtime, OpenVINO, transformers, transformers compiled and torchao in the same precision; nothing is pruned, \
nobody leaves, batches of {BATCH_SIZE}, medians of rounds. Wanted on one thread, sorted: 1.35 in float32, 1.30 in \
bfloat16, 1.90 over ONNX Runtime in int8, and int8 3.60 times as fast as our float32 (MiniLM: 3.00). The pages have \
every engine, other batches, memory, and the settings.
"""
FITTED_HEAD = """A fitted pyramid through `Classifier`, its texts a second over those of other engines with its backbone \
and last head, in batches of similar length; *apart* from tokenisation, and with it *included*. Wanted, apart and on one \
thread: 25 over transformers and 8 over ONNX Runtime.
"""


def kept_figures() -> list[tuple[str, dict[str, Any]]]:
    """The name of its page and the figures of each processor."""
    files = sorted(HERE.glob("figures*.json"))
    return [(f"{path.stem.replace('figures', 'peers')}.md", json.loads(path.read_text())) for path in files]


def summary() -> list[str]:
    """The tables of docs/performance.md, lines of Markdown."""
    kept, lines = kept_figures(), [HEAD]
    for model, title in MODELS.items():
        heads = ("processor", "threads", "texts", *PRECISIONS, f"int8 over {QUANTISED}")
        over = [f"our {precision} over our float32" for precision in PRECISIONS[1:]]
        rows = (_row(page, known, case) for page, known in kept for case in _cases(known, model))
        lines += [f"{title}:", "", *table((*heads, *over), rows)]
    heads = ("processor", "model", *(f"over {way}" for way in BESIDE_FITTED))
    return [*lines, FITTED_HEAD, *table(heads, (row for page, known in kept for row in _fitted(page, known)))]


def in_short() -> list[str]:
    """The README's table: the first model on one thread, sorted and as they come."""
    rows = []
    for page, known in kept_figures():
        cases = [
            _row(f"docs/{page}", known, case) for case in _cases(known, next(iter(MODELS))) if case["threads"] == 1
        ]
        if cases:
            (processor, *_), _, _, *columns = zip(*cases, strict=True)
            rows.append([processor, *(" / ".join(filter(None, cells)) for cells in columns)])
    heads = (*(f"{x}, over the best" for x in PRECISIONS), f"int8, over {QUANTISED.partition(',')[0]}")
    return table(("processor with", *heads, *(f"our {x}, over our float32" for x in PRECISIONS[1:])), rows)


def _cases(known: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """A model's batches, fewer threads first, then sorted ones."""
    cases = [x for x in known["cases"].values() if (x["model"], x["batch_size"]) == (model, BATCH_SIZE)]
    return sorted(cases, key=lambda case: (case["threads"], not case["length_sorted"]))


def _processor(page: str, known: Mapping[str, Any]) -> str:
    kernels = known["machine"]["kernels"]
    return f"[{PROCESSORS.get(kernels, kernels)}]({page})"


def _row(page: str, known: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    ways = case["ways"]
    mine = {precision: f"{OURS}, {precision}" for precision in PRECISIONS}
    return [
        *(_processor(page, known), str(case["threads"]), ORDERS[case["length_sorted"]]),
        *(_over(ways, best_peer(ways, precision), way) for precision, way in mine.items()),
        _over(ways, QUANTISED, mine[precision_of(QUANTISED)]),
        *(_over(ways, BASE, way) for way in list(mine.values())[1:]),
    ]


def _fitted(page: str, known: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, part in sorted(known["fitted"].items()):
        mine = next(way for way in part["ways"] if way.startswith(f"{FITTED}, "))
        cells = [
            ", ".join(f"{_over(part['ways'], way, mine, kind)} {kind}" for kind in ("apart", "included"))
            for way in BESIDE_FITTED
        ]
        yield [_processor(page, known), name, *cells]


def _over(
    ways: Mapping[str, Mapping[str, Sequence[float]]], other: str | None, mine: str, kind: str = "seconds"
) -> str:
    """The median of the rounds' ratios of one way's speed over another's; empty where one of both was not counted."""
    if other is None or any(kind not in ways.get(way, {}) for way in (other, mine)):
        return ""
    return f"{statistics.median(ratios_of(ways[other][kind], ways[mine][kind])):.2f}"
