"""The operators and the engine on a GPU: the parity tests of the CPU, on tensors of a CUDA device."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from triton.runtime import JITFunction

import mp_kernels
from mp_kernels import reference
from mp_kernels.triton import configurations, launching
from mp_model.backbones.int8 import to_int8
from support import tiny
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits, with_gradients
from support.operator_samples import SAMPLES, assert_same_results, on_cuda, opcheck, results_of
from support.places import placed, plain_placed, positions_of, with_bias
from support.ragged_batches import cu_seqlens_of, random_heads, rows_of_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LENGTHS = (65, 0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 127, 128, 129, 255, 256, 257)
LONG = (*LENGTHS, 511, 512, 513, 1025)
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Matrix products of torch's own in float32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", SAMPLES)
def test_operators_give_the_cpu_results(name: str) -> None:
    operator = getattr(torch.ops.mp_kernels, name)
    for sample in SAMPLES[name]():
        assert_same_results(
            name, [x.cpu() for x in results_of(operator, on_cuda(sample))], results_of(operator, sample)
        )


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for sample in SAMPLES[name]():
        opcheck(name, on_cuda(sample))


def attention_of(cu_seqlens: torch.Tensor, longest: int, module: object) -> Callable:
    def attention(q, k, v):
        return module.ragged_attention(q, k, v, cu_seqlens, longest)

    return attention


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["short", "long"])
def test_attention_in_float32(lengths: tuple[int, ...], head_dim: int) -> None:
    cu_seqlens = cu_seqlens_of(lengths).cuda()
    qkv = [x.cuda() for x in random_heads(sum(lengths), 3, head_dim)]
    ours, definition = (attention_of(cu_seqlens, max(lengths), m) for m in (mp_kernels, reference))
    assert_accurate(ours, definition, None, qkv)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["one_pass", "two_passes"])
def test_attention_in_half_precision(
    lengths: tuple[int, ...], head_dim: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most twice the error of the same maths in plain PyTorch at that dtype, by the kernel that is meant."""
    monkeypatch.setattr(configurations, "processors_of", lambda device: 1)  # the batch fills the device
    started = []
    run = JITFunction.run
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *x, **y: (started.append(self.__name__), run(self, *x, **y))[1]
    )
    cu_seqlens = cu_seqlens_of(lengths).cuda()
    qkv = [x.cuda() for x in random_heads(sum(lengths), 3, head_dim, dtype=dtype)]

    def plain(q, k, v):
        outs, importances = [q[:0]], [q.new_empty(0)]
        starts = cu_seqlens.tolist()
        for begin, end in itertools.pairwise(starts):
            scores = torch.einsum("ihd,jhd->hij", q[begin:end], k[begin:end]) * head_dim**-0.5
            p = torch.softmax(scores, dim=-1)
            outs.append(torch.einsum("hij,jhd->ihd", p, v[begin:end]))
            importances.append(p.mean((0, 1)) if end > begin else p.new_empty(0))
        return torch.cat(outs), torch.cat(importances)

    ours, definition = (attention_of(cu_seqlens, max(lengths), m) for m in (mp_kernels, reference))
    exact = with_gradients(definition, [x.double() for x in qkv])
    for got, near, true in zip(with_gradients(ours, qkv), with_gradients(plain, qkv), exact, strict=True):
        assert_no_worse_than_plain(got.to(near.dtype), near, true)
    keys = launching.padded_width(max(lengths))
    tile = configurations.one_pass(configurations.architecture_of(qkv[0].device), keys, head_dim, 2)
    assert ("attention_one_pass" in started) == (tile is not None)


def test_runs_repeat_and_samples_do_not_depend_on_their_place() -> None:
    cu_seqlens = cu_seqlens_of(LENGTHS)
    qkv = [x.cuda() for x in random_heads(sum(LENGTHS), 3, 64, dtype=torch.bfloat16)]
    first = with_gradients(attention_of(cu_seqlens.cuda(), 257, mp_kernels), qkv)
    assert_same_bits(with_gradients(attention_of(cu_seqlens.cuda(), 257, mp_kernels), qkv), first)

    order = torch.randperm(len(LENGTHS)).tolist()
    rows = rows_of_samples(cu_seqlens, order).cuda()
    permuted = cu_seqlens_of([LENGTHS[b] for b in order]).cuda()
    with torch.no_grad():
        got = mp_kernels.ragged_attention(*(x[rows] for x in qkv), permuted, 257)
    assert_same_bits(got, [x[rows] for x in first[:2]])


PLACED = [(True, None), (False, 0), (False, 64), (True, 64)]


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(("biased", "window"), PLACED)
def test_bias_and_windows_in_float32(biased: bool, window: int | None, head_dim: int) -> None:
    positions = positions_of(LONG, 2)
    ours, definition = placed(LONG, device="cuda", window=window, positions=positions)
    qkv = [x.cuda() for x in random_heads(sum(LONG), 3, head_dim)]
    inputs = with_bias(qkv) if biased else qkv
    first = with_gradients(ours, inputs)
    exact = with_gradients(definition, [x.double() for x in inputs])
    for got, true in zip(first, exact, strict=True):
        # The gradient of the bias is a sum over a million pairs.
        torch.testing.assert_close(got, true.float(), atol=1e-5 * max(1.0, true.abs().max().item()), rtol=0)
    assert_same_bits(with_gradients(ours, inputs), first)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("window", [None, 64])
def test_bias_and_windows_in_half_precision(window: int | None, dtype: torch.dtype) -> None:
    positions = positions_of(LONG, 2)
    ours, definition = placed(LONG, device="cuda", window=window, positions=positions)
    inputs = with_bias([x.cuda() for x in random_heads(sum(LONG), 3, 64, dtype=dtype)])
    exact = with_gradients(definition, [x.double() for x in inputs])
    near = with_gradients(plain_placed(LONG, positions, window), inputs)
    for got, x, true in zip(with_gradients(ours, inputs), near, exact, strict=True):
        assert_no_worse_than_plain(got.to(x.dtype), x, true)


@torch.no_grad()
@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
def test_model_gives_the_cpu_answers(head: str, pruned: bool) -> None:
    batch = tiny.samples()
    model = tiny.classifier(exit_head=head)
    if pruned:
        tiny.calibrate_pruning(model, batch)
    thresholds = tiny.calibrate_exits(model, batch)
    inputs = batch.padded("mixed")
    expected = model(**inputs, exit_threshold=thresholds)
    got = model.cuda()(**{name: x.cuda() for name, x in inputs.items()}, exit_threshold=thresholds)
    for name in ("exit_layer", "tokens_per_layer", "flops", "executed_flops"):
        assert torch.equal(got[name].cpu(), expected[name]), name
    for name in ("logits", "uncertainty"):
        torch.testing.assert_close(got[name].cpu(), expected[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_host_waits_for_nothing_but_sizes() -> None:
    """The one read a layer waits for an event; whatever else would make the host wait is refused by torch."""
    batch = tiny.samples()
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3])
    tiny.calibrate_pruning(model, batch)
    thresholds = tiny.calibrate_exits(model, batch)
    model, inputs = model.cuda(), {name: x.cuda() for name, x in batch.padded().items()}
    model(**inputs, exit_threshold=thresholds)  # the first call compiles
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        model(**inputs, exit_threshold=thresholds)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_model_in_half_precision(dtype: torch.dtype) -> None:
    batch = tiny.samples()
    model = tiny.classifier()
    expected = model(**batch.padded())
    got = model.to("cuda", dtype)(**{name: x.cuda() for name, x in batch.padded().items()})
    assert got.logits.dtype == dtype
    assert got.uncertainty.dtype == torch.float32
    torch.testing.assert_close(got.logits.float().cpu(), expected.logits, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_an_int8_model_gives_the_cpu_answers() -> None:
    """Rounded where float32 differs in its last digit, so a few values are another integer."""
    batch = tiny.samples()
    model = tiny.classifier()
    to_int8(model)
    expected = model(**batch.padded(), exit_threshold="never").logits
    got = model.cuda()(**{name: x.cuda() for name, x in batch.padded().items()}, exit_threshold="never").logits
    torch.testing.assert_close(got.cpu(), expected, atol=0.02, rtol=0)
