"""Whole models on one batch: transformers' BERT, BERT on packed rows, and ours, dense to both ways thinner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BertForSequenceClassification

import workload
from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification
from mp_model.measuring.timing import padded_twin

from .agreement import RefusedError, demand, error_of, figure_or_refusal
from .clocks import device_work, wall_milliseconds
from .document import Sheet
from .peers import PackedBert
from .plan import DTYPES, SHAPES
from .truth import Truth

LABELS = 4
KEPT = 0.9  # of the tokens that enter a layer, where it prunes
ARRIVALS = 4  # batches that share a run
LEAST_COMPARED = 64  # samples, of several batches where one has fewer
LEAST_FOLLOWED = 0.8  # share of samples whose way is known, so that their answers can be compared
LEAST_ALLOWED = 1e-5  # relative error of logits; else twice transformers' own at the dtype
TINY = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


class Batch(NamedTuple):
    """Texts padded on the right: ids and mask, int64 ``[batch, width]``."""

    ids: Tensor
    mask: Tensor

    @property
    def named(self) -> dict[str, Tensor]:
        """The arguments of a model."""
        return {"input_ids": self.ids, "attention_mask": self.mask}


class Answers(NamedTuple):
    """The outcome of a run.

    Attributes:
        logits: ``[batch, labels]``.
        exit_layer: int64 ``[batch]``, the layer that gave each; None: all are layer L's.
        pruned_by: int64 ``[batch, width]``, the layer that pruned each token, 0 for none; None: nothing was pruned.
        followed: bool ``[batch]``, the samples of which the other two are known; None: all.
    """

    logits: Tensor
    exit_layer: Tensor | None = None
    pruned_by: Tensor | None = None
    followed: Tensor | None = None


class Way(NamedTuple):
    """A way to classify the batch.

    Attributes:
        run: what is timed.
        answers: the same once, of other batches too, with all that the truth must know.
        batches: number of batches that a run classifies.
        compared: number of batches whose answers these are.
    """

    run: Callable[[], Any]
    answers: Callable[[], Answers]
    batches: int = 1
    compared: int = 1


def lengths_of(tokens: int, batch: int, dry: bool) -> list[int]:
    """Tokens of each text: as many for all, but 55 stands for AG News' lengths; a few short texts in a dry run."""
    if dry:
        return [5, 9, 3, 7]
    return workload.ag_news_lengths(batch) if tokens == 55 else [tokens] * batch


def batch_of(lengths: list[int], vocabulary: int, device: torch.device, seed: int) -> Batch:
    """Texts of random word pieces."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, mask.shape, generator=generator) * mask
    return Batch(ids.to(device), mask.to(device))


def model_of(dtype: torch.dtype, dry: bool) -> PyramidBertForSequenceClassification:
    """BERT-base with random weights, spread so that tokens differ in importance and answers in certainty."""
    torch.manual_seed(0)
    config = PyramidBertConfig(num_labels=LABELS, **(TINY if dry else {}))
    model = PyramidBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                weight *= 4
            elif name.endswith("classifier.weight"):
                weight *= 20
    return model.to("cpu" if dry else "cuda", dtype)


def compiled(stock: BertForSequenceClassification, dry: bool) -> Callable[..., Any]:
    """transformers' model through torch.compile with CUDA graphs; only traced in a dry run."""
    if dry:
        return torch.compile(stock, backend="aot_eager", dynamic=False)
    return torch.compile(stock, mode="reduce-overhead", dynamic=False)


def plain(model: Callable[..., Any], batch: Batch) -> Way:
    """A model that answers everything in its last layer."""

    def run() -> Any:
        return model(**batch.named)

    def answers() -> Answers:
        out = run()
        return Answers((out if isinstance(out, Tensor) else out.logits).clone())

    return Way(run, answers)


def pyramid(
    model: PyramidBertForSequenceClassification,
    batches: list[Batch],
    graphs: bool = True,
    others: Sequence[Batch] = (),
    **settings: Any,
) -> Way:
    """Ours, all batches in one call; graphs: whether the device replays graphs, or is told every kernel.

    Answers for the others, each in a call of its own, are only compared. Graphs cannot follow tokens. In half types sums of
    other lengths round otherwise, so a sample near a threshold may lose other tokens, or leave elsewhere, in the run that
    follows them: such a sample is not compared.

    settings: ``prune_thresholds`` and ``exit_threshold`` of the call.
    """
    batch = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    def call(part: Batch, by_graphs: bool, **more: Any) -> Any:
        model.use_graphs = by_graphs
        return model(**part.named, **settings, **more)

    def answers() -> Answers:
        found = []
        for part in (batch, *others):
            out, followed = call(part, graphs), call(part, False, follow_tokens=True)
            same = (out.exit_layer == followed.exit_layer) & (out.tokens_per_layer == followed.tokens_per_layer).all(1)
            found.append((out.logits, out.exit_layer, followed.pruned_by, same))
        return Answers(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    return Way(lambda: call(batch, graphs), answers, len(batches), len(batches) + len(others))


def expected(truth: Truth, batches: list[Batch], answers: Answers) -> Tensor:
    """The truth's logits ``[batch, labels]`` at the exits and with the survivors of some answers."""
    size = len(batches[0].ids)
    followed = [None] * len(batches) if answers.pruned_by is None else answers.pruned_by.split(size)
    by_layer = torch.cat([truth.logits(*batch, x) for batch, x in zip(batches, followed, strict=True)], dim=1)
    if answers.exit_layer is None:
        return by_layer[-1]
    return by_layer[answers.exit_layer - 1, torch.arange(by_layer.shape[1], device=by_layer.device)]


def figure_of(way: Way, truth: Truth, batches: list[Batch], allowed: float, layers: int, dry: bool) -> dict[str, Any]:
    """Time of a batch, device work of a layer, and the tokens and texts that went far; refused if answers are not true."""
    answers = way.answers()
    true, logits = expected(truth, batches, answers), answers.logits
    same = answers.followed
    if same is not None:
        if same.double().mean().item() < LEAST_FOLLOWED:
            raise RefusedError(f"{same.double().mean().item():.0%} of the samples went the same way when followed")
        true, logits = true[same], logits[same]
    demand(logits, true, allowed)
    milliseconds = wall_milliseconds(way.run, dry) / way.batches
    figure: dict[str, Any] = {
        "clock": "dry" if dry else "wall",
        "milliseconds": milliseconds,
        "texts_per_second": 1e3 * len(batches[0].ids) / milliseconds,
        "relative_error": error_of(logits, true),
    }
    if answers.exit_layer is not None:
        figure["mean_exit_layer"] = answers.exit_layer.double().mean().item()
    if answers.pruned_by is not None:
        real = torch.cat([batch.mask for batch in batches]).bool()
        figure["tokens_never_pruned"] = (answers.pruned_by[real] == 0).double().mean().item()
    if not dry:
        work = device_work(way.run)
        busy = work.milliseconds / way.batches
        figure |= {
            "device_milliseconds": busy,
            "busy": busy / milliseconds,
            "kernels_per_layer": len(work.kernels) / way.batches / layers,
            "launches_per_layer": work.launches / way.batches / layers,
        }
    return figure


def ways_of(
    model: PyramidBertForSequenceClassification,
    stock: BertForSequenceClassification,
    truth: Truth,
    batches: list[Batch],
) -> dict[str, Callable[[], Way]]:
    """All ways beside transformers' own, by name, each made when its turn comes."""
    first, dry = batches[0], not batches[0].ids.is_cuda
    others = batches[1 : -(-LEAST_COMPARED // len(first.ids))]
    prune = truth.prune_thresholds(*first, KEPT)
    exits = truth.exit_thresholds(truth.logits(*first))
    exits_of_both: list[list[float]] = []

    def both(number: int) -> Way:
        if not exits_of_both:
            found = pyramid(model, [first], prune_thresholds=prune, exit_threshold="never").answers().pruned_by
            exits_of_both.append(truth.exit_thresholds(truth.logits(*first, found)))
        beside = others if number == 1 else ()
        return pyramid(model, batches[:number], others=beside, prune_thresholds=prune, exit_threshold=exits_of_both[0])

    several = f"{len(batches)} batches in one"
    ways = {
        "BERT on packed rows": lambda: plain(PackedBert(stock), first),
        "ours, dense, kernel by kernel": lambda: pyramid(model, [first], False, exit_threshold="never"),
        "ours, dense": lambda: pyramid(model, [first], exit_threshold="never"),
        "ours, pruned": lambda: pyramid(model, [first], others=others, prune_thresholds=prune, exit_threshold="never"),
        "ours, exits": lambda: pyramid(model, [first], others=others, exit_threshold=exits),
        "ours, both": lambda: both(1),
        f"ours, exits, {several}": lambda: pyramid(model, batches, exit_threshold=exits),
        f"ours, both, {several}": lambda: both(len(batches)),
    }
    ways["transformers, compiled"] = lambda: plain(compiled(stock, dry), first)
    return ways


def measure(sheet: Sheet, dtype: torch.dtype, tokens: int, texts: int) -> bool:
    """Keeps the figure of each way, one after the other; returns whether all answers were true."""
    model = model_of(dtype, sheet.dry)
    stock, truth = padded_twin(model).to(dtype), Truth(model)
    layers, device = model.config.num_hidden_layers, model.device
    lengths = lengths_of(tokens, texts, sheet.dry)
    batches = [batch_of(lengths, model.config.vocab_size, device, seed) for seed in range(ARRIVALS)]
    fine = True

    def keep(name: str, make: Callable[[], Way], allowed: float) -> dict[str, Any]:
        nonlocal fine

        def figure() -> dict[str, Any]:
            way = make()
            return figure_of(way, truth, batches[: way.compared], allowed, layers, sheet.dry)

        found = figure_or_refusal(figure)
        sheet.keep(name, found)
        if "refused" in found:
            fine = False
            print(f"{name}: {found['refused']}")
        return found

    roundings = max(LEAST_ALLOWED, 16 * torch.finfo(dtype).eps)
    theirs = keep("transformers", lambda: plain(stock, batches[0]), roundings)
    allowed = max(LEAST_ALLOWED, 2 * theirs.get("relative_error", 0.0))
    for name, make in ways_of(model, stock, truth, batches).items():
        if name == "BERT on packed rows" and device.type == "cuda" and dtype == torch.float32:
            sheet.keep(name, {"left out": "torch's varlen_attn takes half types only"})
        else:
            keep(name, make, allowed)
    return fine


def compile_ahead() -> int:
    """Compiles transformers' model for all dtypes and shapes side by side, so that none waits for it when it is timed."""
    wanted = [(dtype, str(tokens), str(texts)) for dtype in DTYPES for tokens, texts in SHAPES]
    few = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    running = [subprocess.Popen([sys.executable, "-m", "gpu.models", "compile", *shape], env=few) for shape in wanted]
    return max(process.wait() for process in running)


def main() -> None:
    """``DTYPE TOKENS TEXTS`` measures; ``ahead`` compiles for all of them, each with ``compile DTYPE TOKENS TEXTS``."""
    torch.backends.cuda.matmul.allow_tf32 = False
    if sys.argv[1] == "ahead":
        sys.exit(compile_ahead())
    dtype, tokens, texts = getattr(torch, sys.argv[-3]), int(sys.argv[-2]), int(sys.argv[-1])
    with torch.inference_mode():
        if sys.argv[1] == "compile":
            model = model_of(dtype, dry=False)
            batch = batch_of(lengths_of(tokens, texts, False), model.config.vocab_size, model.device, 0)
            plain(compiled(padded_twin(model).to(dtype), dry=False), batch).run()
        else:
            sys.exit(not measure(Sheet.of_this_process(), dtype, tokens, texts))


if __name__ == "__main__":
    main()
