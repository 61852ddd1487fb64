"""Requirements on every registered operator: its contract with torch, checks of cu_seqlens, compilation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import mp_kernels
from mp_kernels import backends, reference, schemas
from mp_kernels.memory import read_by_host
from support.accuracy import assert_same_bits
from support.operator_samples import (
    CU_SEQLENS,
    LENGTHS,
    SAMPLES,
    STAYS,
    TOTAL,
    assert_same_results,
    grown,
    opcheck,
    results_of,
    spread,
)
from support.ragged_batches import cu_seqlens_of, random_heads, stays_of


def test_fresh_memory_is_poisoned() -> None:
    """Otherwise no other test here would notice an element that a kernel does not write."""
    like = torch.zeros(1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.empty(1000, dtype=dtype).isnan().all()
        assert like.new_empty(10, 100, dtype=dtype).isnan().all()
    assert (like.new_empty(1000, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


def test_public_operators_have_definitions() -> None:
    """Their parameters are the same except pack's ``lengths``, which saves work and changes no result."""

    def parameters(function: Callable) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "lengths"]

    for name in mp_kernels.__all__:
        operator = getattr(mp_kernels, name)
        if inspect.isfunction(operator):
            assert parameters(operator) == parameters(getattr(reference, name)), name


@pytest.mark.parametrize("name", backends.FOR_CPUS)
def test_definitions_stay_on_the_device_of_their_inputs(name: str) -> None:
    """GPUs run the definitions of these steps. A tensor that forgets its device would be made on another one here."""
    for sample in SAMPLES[name]():
        with torch.device("meta"):
            got = getattr(schemas, name)(*sample)
        assert all(x.device.type == "cpu" for x in pytree.tree_leaves(got))


# ---- the contract with torch ----


def test_no_operator_is_forgotten_here() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mp_kernels::")}
    assert registered == {f"mp_kernels::{name}" for name in schemas.SCHEMAS}
    assert set(SAMPLES) == set(schemas.SCHEMAS)


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_opcheck(name: str) -> None:
    for sample in SAMPLES[name]():
        opcheck(name, sample)


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_compiled_kernel_agrees_with_the_fallback(name: str) -> None:
    """Both implementations of one schema give the same whole buffers."""
    for sample in SAMPLES[name]():
        got = results_of(getattr(torch.ops.mp_kernels, name), sample)
        assert_same_results(name, got, results_of(getattr(schemas, name), sample))


@pytest.mark.parametrize("module", [torch.ops.mp_kernels, schemas], ids=["compiled", "fallback"])
@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_strides_change_nothing(name: str, module: object) -> None:
    operator = getattr(module, name)
    for sample in SAMPLES[name]():
        for x, y in zip(results_of(operator, spread(sample, name)), results_of(operator, sample), strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("module", [torch.ops.mp_kernels, schemas], ids=["compiled", "fallback"])
@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_autocast_changes_nothing(name: str, module: object) -> None:
    operator = getattr(module, name)
    for sample in SAMPLES[name]():
        expected = results_of(operator, sample)
        with torch.autocast("cpu", torch.bfloat16):
            got = results_of(operator, sample)
        assert_same_bits(got, expected)


SUMMED_BY_ATOMICS = {
    f"aten::{name}{ending}"
    for name in ("index_add", "index_put", "index_reduce", "scatter_add", "scatter_reduce", "put")
    for ending in ("", "_")
}


class CalledOperators(TorchDispatchMode):
    """Names of the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.name().split(".")[0])
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in schemas.SCHEMAS if name != "exit_head"])
def test_gradients_on_a_gpu_have_one_order(name: str) -> None:
    """The backward pass, the same on every device, calls no operator whose sums on a GPU depend on timing."""
    for sample in SAMPLES[name]():
        with CalledOperators() as called:
            results = pytree.tree_leaves(getattr(torch.ops.mp_kernels, name)(*sample))[:2]
            wanted = [x for x in pytree.tree_leaves(sample) if isinstance(x, torch.Tensor) and x.requires_grad]
            if wanted:
                torch.autograd.grad(sum(x.sum() for x in results if x.requires_grad), wanted)
        assert f"mp_kernels::{name}" in called.names
        assert not called.names & SUMMED_BY_ATOMICS


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_meta_tensors_carry_shapes(name: str) -> None:
    """Shapes and dtypes are those of real tensors, so that a model's memory can be planned without a device."""
    for sample in SAMPLES[name]():
        with torch.no_grad():
            real = getattr(torch.ops.mp_kernels, name)(*sample)
            meta = getattr(torch.ops.mp_kernels, name)(*map(_to_meta, sample))
        if isinstance(real, torch.Tensor):
            real, meta = [real], [meta]
        if real is None:
            real, meta = [], meta or []
        assert [(x.shape, x.dtype) for x in meta] == [(x.shape, x.dtype) for x in real]
        assert all(x.is_meta for x in meta)


def _to_meta(x: object) -> object:
    if isinstance(x, list):
        return [_to_meta(part) for part in x]
    return x.detach().to("meta") if isinstance(x, torch.Tensor) else x


def test_inference_mode() -> None:
    qkv = random_heads(TOTAL, 2, 16)
    expected = mp_kernels.ragged_attention(*qkv, CU_SEQLENS, 17)
    with torch.inference_mode():
        assert_same_bits(mp_kernels.ragged_attention(*qkv, CU_SEQLENS, 17), expected)


def test_calls_from_several_python_threads() -> None:
    """Scratch memory belongs to one call at a time, as a server needs it."""
    batches = [random_heads(TOTAL, 2, 16) for _ in range(8)]
    expected = [mp_kernels.ragged_attention(*qkv, CU_SEQLENS, 17) for qkv in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda qkv: mp_kernels.ragged_attention(*qkv, CU_SEQLENS, 17), batches))
            for x, y in zip(got, expected, strict=True):
                assert_same_bits(x, y)


# ---- cu_seqlens ----

ROWS = torch.zeros(10, 3)
TAKING_CU_SEQLENS = {
    "ragged_attention": lambda c, dtype: mp_kernels.ragged_attention(*3 * [ROWS.to(dtype).unsqueeze(2)], c, 10),
    "prune_tokens": lambda c, dtype: mp_kernels.prune_tokens(ROWS[:, 0].to(dtype), c, 0.5),
    "top_k_tokens": lambda c, dtype: mp_kernels.top_k_tokens(ROWS[:, 0].to(dtype), c, 2),
    "select_samples": lambda c, _: mp_kernels.select_samples(c, torch.ones(len(c) - 1, dtype=torch.bool), 10),
    "ragged_mean": lambda c, dtype: mp_kernels.ragged_mean(ROWS.to(dtype), c),
    "pair_features": lambda c, dtype: mp_kernels.pair_features(
        *(ROWS.to(dtype)[: len(c) - 1], ROWS.to(dtype), c, c[:-1].long())
    ),
}


@pytest.mark.parametrize("operator", TAKING_CU_SEQLENS.values(), ids=TAKING_CU_SEQLENS)
@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([1, 4, 10], r"cu_seqlens\w* must start with 0; got 1"),
        ([0, 6, 4, 10], r"cu_seqlens\w* must not decrease; got 4 after 6 at position 2"),
        ([0, -4, 10], r"cu_seqlens\w* must not decrease; got -4 after 0 at position 1"),
        ([0, 4, 9], r"the last entry of cu_seqlens\w* must be the number of rows, 10; got 9"),
        ([0, 4, 11], r"the last entry of cu_seqlens\w* must be the number of rows, 10; got 11"),
        ([0], r"the last entry of cu_seqlens\w* must be the number of rows, 10; got 0"),
    ],
)
def test_malformed_cu_seqlens(operator: Callable, starts: list[int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        operator(torch.tensor(starts, dtype=torch.int32), torch.float32)


@pytest.mark.parametrize("operator", TAKING_CU_SEQLENS.values(), ids=TAKING_CU_SEQLENS)
@pytest.mark.parametrize("starts", [[1, 4, 10], [0, 6, 4, 10], [0, 4, 9], [0]], ids=str)
def test_malformed_cu_seqlens_in_float64(operator: Callable, starts: list[int]) -> None:
    with pytest.raises(RuntimeError, match=r"cu_seqlens\w* must "):
        operator(torch.tensor(starts, dtype=torch.int32), torch.float64)


# ---- torch.compile ----


def layer_step(qkv, cu_seqlens, max_seqlen, stays, index, weight, bias):
    out, importance = mp_kernels.ragged_attention(*qkv.unbind(1), cu_seqlens, max_seqlen, stays=stays)
    _, by_head = mp_kernels.ragged_attention(*qkv.unbind(1), cu_seqlens, max_seqlen, by_head=True)
    kept_importance, kept_by_head = mp_kernels.ragged_gather([importance, by_head.t()], index)
    kept_importance = kept_importance * kept_by_head[:, 1]
    normed = mp_kernels.add_layer_norm(out.flatten(1), qkv[:, 0].flatten(1), weight, bias, 1e-5, index, index)
    activated = mp_kernels.bias_gelu(normed, bias)
    means = mp_kernels.ragged_mean(qkv[:, 1].flatten(1), cu_seqlens)
    return activated * kept_importance.unsqueeze(1), mp_kernels.normalized_entropy(means)


@pytest.fixture
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_graph(backend: str, fresh_compiler: None) -> None:
    compiled = torch.compile(layer_step, fullgraph=True, backend=backend)
    for lengths in (LENGTHS, (5, 9)):
        qkv, weight, bias = grown(sum(lengths), 3, 2, 8), grown(16), grown(16)
        stays = stays_of(n % 2 for n in range(len(lengths)))
        arguments = qkv, cu_seqlens_of(lengths), max(lengths), stays, torch.tensor([0, 3, 3, 8]), weight, bias

        def results_and_gradients(function, arguments=arguments):
            results = function(*arguments)
            return [*results, *torch.autograd.grad([x.sum() for x in results], [arguments[0], *arguments[5:]])]

        assert_same_bits(results_and_gradients(compiled), results_and_gradients(layer_step))


class OnCuda:
    """Stand-in for a tensor of a device that is not here."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.device = torch.device("cuda")

    def tolist(self) -> list[int]:
        return self.x.tolist()


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_reads_by_the_host_are_traced_for_a_gpu(fresh_compiler: None) -> None:
    """The graph reads the values itself; events and pinned memory have no place in it."""

    def sum_of_read(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(()) + sum(read_by_host(OnCuda(x)))

    compiled = torch.compile(sum_of_read, fullgraph=True, backend="eager")
    assert compiled(torch.arange(4)) == 6


@pytest.mark.parametrize("stays", [None, STAYS])
@pytest.mark.parametrize("shape", [(TOTAL,), (2, TOTAL)])
def test_compiled_compaction(shape: tuple[int, ...], stays: torch.Tensor | None, fresh_compiler: None) -> None:
    """A whole graph may contain the operator, as its buffers have static shapes: the rest is masked, not cut off."""

    def survivors(importance, cu_seqlens, stays):
        index, _, _, extents = torch.ops.mp_kernels.prune_tokens(importance, cu_seqlens, stays, 0.5)
        return torch.where(torch.arange(index.shape[0]) < extents[0], index, -1)

    importance = torch.rand(shape)
    kept = torch.compile(survivors, fullgraph=True, backend="aot_eager")(importance, CU_SEQLENS, stays)
    expected = reference.prune_tokens(importance, CU_SEQLENS, 0.5, stays).index.tolist()
    assert kept.tolist() == expected + [-1] * (TOTAL - len(expected))


def test_compiled_exit(fresh_compiler: None) -> None:
    def decision(features, *head):
        logits, uncertainty, stays = mp_kernels.exit_head(features, *head, 0.9)
        return torch.where(stays, -1, logits.argmax(1)), uncertainty

    arguments = [torch.randn(shape) for shape in ((40, 6), (5, 6), (5,), (3, 5), (3,))]
    compiled = torch.compile(decision, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(*arguments), decision(*arguments))
