"""The operators on a GPU whatever surrounds the call: streams, devices, autocast, compiled and captured graphs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import mp_kernels
from mp_kernels import backends
from support.accuracy import assert_same_bits, with_gradients
from support.operator_samples import SAMPLES, on_cuda, results_of, spread
from support.places import BUCKETS, positions_of
from support.ragged_batches import cu_seqlens_of, random_heads, stays_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LENGTHS = (65, 0, 1, 17)
TOTAL = sum(LENGTHS)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in backends.FOR_CPUS])
def test_strides_and_autocast_change_nothing(name: str) -> None:
    operator = getattr(torch.ops.mp_kernels, name)
    for sample in SAMPLES[name]():
        expected = results_of(operator, on_cuda(sample))
        with torch.autocast("cuda", torch.bfloat16):
            got = results_of(operator, spread(on_cuda(sample), name))
        assert_same_bits(got, expected)


def layer(device: torch.device | str = "cuda") -> tuple[Callable, list[torch.Tensor]]:
    """A layer's operators, of which none shrinks the batch, and their floating inputs."""
    cu_seqlens, stays = cu_seqlens_of(LENGTHS).to(device), stays_of([1, 0, 1, 1]).to(device)
    index = torch.randint(TOTAL, (200,), generator=torch.Generator().manual_seed(2)).to(device)
    positions, buckets = positions_of(LENGTHS, 1).to(device), BUCKETS.to(device)
    angles = torch.randn(int(positions.max()) + 1, 8, generator=torch.Generator().manual_seed(2)).to(device)

    def run(q, k, v, weight, bias, distance_bias):
        out, importance = mp_kernels.ragged_attention(q, k, v, cu_seqlens, max(LENGTHS), stays=stays)
        turned_q, turned_k = (mp_kernels.rotary_embedding(x, positions, angles.cos(), angles.sin()) for x in (q, k))
        local, seen = mp_kernels.ragged_attention(
            *(turned_q, turned_k, out, cu_seqlens, max(LENGTHS)),
            positions=positions, bias=distance_bias, buckets=buckets, window=8,
        )  # fmt: skip
        gated = mp_kernels.gelu_gate(local.flatten(1))
        kept_out, kept_importance = mp_kernels.ragged_gather([out, importance], index)
        # The residual's rows are gathered too, many times each, as those of a table of positions.
        normed = mp_kernels.add_layer_norm(kept_out.flatten(1), q.flatten(1), weight, bias, 1e-5, index)
        activated = mp_kernels.bias_gelu(normed * kept_importance.unsqueeze(1), bias)
        means = mp_kernels.ragged_mean(out.flatten(1), cu_seqlens)
        return activated, means, mp_kernels.normalized_entropy(means), gated, seen

    inputs = [*random_heads(TOTAL, 2, 16), torch.randn(32), torch.randn(32), torch.randn(2, 10)]
    return run, [x.to(device) for x in inputs]


def test_gradients_repeat_bit_by_bit() -> None:
    run, inputs = layer()
    first = with_gradients(run, inputs)
    for _ in range(5):
        assert_same_bits(with_gradients(run, inputs), first)


def test_side_stream() -> None:
    """Kernels, and the host's read, follow the stream that is current, here behind a long wait."""
    run, inputs = layer()
    importance = torch.rand(TOTAL, device="cuda")
    starts = cu_seqlens_of(LENGTHS).cuda()
    expected, kept = run(*inputs), mp_kernels.prune_tokens(importance, starts, 0.5)
    late = [torch.zeros_like(x) for x in (*inputs, importance)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for x, value in zip(late, (*inputs, importance), strict=True):
            x.copy_(value)
        got, got_kept = run(*late[:-1]), mp_kernels.prune_tokens(late[-1], starts, 0.5)
    assert got_kept.index.tolist() == kept.index.tolist()
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device() -> None:
    run, inputs = layer()
    expected = with_gradients(run, inputs)
    elsewhere, _ = layer("cuda:1")
    got = with_gradients(elsewhere, [x.to("cuda:1") for x in inputs])
    assert all(x.device.index == 1 for x in got)
    assert_same_bits([x.cpu() for x in got], [x.cpu() for x in expected])
    importance, starts = torch.rand(TOTAL, device="cuda:1"), cu_seqlens_of(LENGTHS).to("cuda:1")
    assert mp_kernels.prune_tokens(importance, starts, 0.5).index.device.index == 1


# From torch's own compiler.
COMPILERS_WARNING = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@COMPILERS_WARNING
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    torch.compiler.reset()
    run, inputs = layer()
    got = with_gradients(torch.compile(run, fullgraph=True, backend=backend), inputs)
    for x, y in zip(got, with_gradients(run, inputs), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@COMPILERS_WARNING
def test_compiled_compaction() -> None:
    """The host's read breaks the graph, or is part of it; either way the rows are the same."""
    torch.compiler.reset()
    importance, starts = torch.rand(TOTAL, device="cuda"), cu_seqlens_of(LENGTHS).cuda()

    def survivors(x: torch.Tensor) -> torch.Tensor:
        return mp_kernels.ragged_gather(x, mp_kernels.prune_tokens(x, starts, 0.5).index)

    assert_same_bits([torch.compile(survivors, backend="aot_eager")(importance)], [survivors(importance)])


@torch.no_grad()
def test_captured_graph() -> None:
    run, inputs = layer()
    run(*inputs)  # the first call compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*inputs)
    others = [torch.randn_like(x) for x in inputs]
    for x, other in zip(inputs, others, strict=True):
        x.copy_(other)
    graph.replay()
    assert_same_bits(results, run(*others))


BAD_CALLS = {
    "gather": "ragged_gather(x, torch.tensor([0, 4], device='cuda'))",
    "norm": "add_layer_norm(x, x, x[0], x[0], 1e-5, torch.tensor([0, 1, 2, -1], device='cuda'))",
    "cu_seqlens": "ragged_mean(x, torch.tensor([0, 5], dtype=torch.int32, device='cuda'))",
    "max_seqlen": "ragged_attention(*3 * [heads], starts, 16)",
    "max_seqlen, without importance": "ragged_attention(*3 * [heads], starts, 16, need_importance=False)",
    "positions": "ragged_attention(*3 * [heads], starts, 99, window=1, positions=torch.zeros_like(heads[:, 0, 0]).int())",
    "bucket": "ragged_attention(*3 * [heads], starts, 99, bias=x[:1], buckets=torch.tensor([99], device='cuda').int())",
    "place": "rotary_embedding(x[:, None], torch.full((4,), 9, device='cuda').int(), x[:, :8], x[:, :8])",
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input_stops_the_kernel(call: str) -> None:
    """In a process of its own, since a device-side assertion ends the use of the device."""
    code = (
        "import torch, mp_kernels; x = torch.ones(4, 16, device='cuda'); "
        "starts = torch.tensor([0, 99], dtype=torch.int32, device='cuda'); "
        "heads = torch.zeros(99, 1, 16, device='cuda'); "
        f"mp_kernels.{call}; torch.cuda.synchronize()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "assert" in ended.stderr
