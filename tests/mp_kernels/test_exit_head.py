"""exit_head: predictions, their uncertainty, and which samples stay."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_near_exact, assert_same_bits, plain_entropy

HALF = (torch.float16, torch.bfloat16)


def head_inputs(
    batch: int, features: int, hidden: int, labels: int, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Random features and parameters of a head, scaled as training would leave them."""
    inputs = torch.randn(batch, features), torch.randn(hidden, features) / math.sqrt(features), torch.randn(hidden)
    return [x.to(dtype) for x in (*inputs, 2 * torch.randn(labels, hidden) / math.sqrt(hidden), torch.randn(labels))]


def plain_head(features, dense_weight, dense_bias, weight, bias) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(torch.tanh(F.linear(features, dense_weight, dense_bias)), weight, bias)
    return logits, plain_entropy(logits)


def assert_head_accurate(inputs: list[torch.Tensor], threshold: float | torch.Tensor = 0.5) -> None:
    logits, uncertainty, stays = mp_kernels.exit_head(*inputs, threshold)
    *exact, exactly_stays = reference.exit_head(*(x.double() for x in inputs), threshold)
    assert_near_exact([logits, uncertainty], plain_head(*inputs), exact, inputs[0].dtype)
    assert (logits.dtype, uncertainty.dtype, stays.dtype) == (inputs[0].dtype, torch.float32, torch.bool)
    assert stays.tolist() == (uncertainty > threshold).tolist()
    near = (uncertainty - exact[1]).abs().max() if len(stays) else 0
    clear = (exact[1] - threshold).abs() > near
    assert stays[clear].tolist() == exactly_stays[clear].tolist()


@pytest.mark.parametrize("labels", [2, 3, 77])
@pytest.mark.parametrize(("batch", "features", "hidden"), [(33, 40, 24), (7, 768, 768), (9, 1, 1), (0, 40, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_against_the_definition(batch: int, features: int, hidden: int, labels: int, dtype: torch.dtype) -> None:
    assert_head_accurate(head_inputs(batch, features, hidden, labels, dtype))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("features", "hidden", "labels"), [(768, 768, 4), (40, 23, 9), (17, 8, 2)])
def test_few_samples(batch: int, features: int, hidden: int, labels: int) -> None:
    """Up to four are multiplied row by row, eight outputs at a time or fewer."""
    assert_head_accurate(head_inputs(batch, features, hidden, labels))


@given(st.lists(st.floats(0, 1, width=16), max_size=12), st.sampled_from([torch.float32, torch.float64, *HALF]))
def test_a_threshold_for_each_sample(thresholds: list[float], dtype: torch.dtype) -> None:
    inputs = head_inputs(len(thresholds), 6, 5, 3)
    assert_head_accurate(inputs, torch.tensor(thresholds, dtype=dtype))
    logits, uncertainty, stays = mp_kernels.exit_head(*inputs, torch.tensor(thresholds, dtype=dtype))
    for b, threshold in enumerate(torch.tensor(thresholds, dtype=dtype).tolist()):
        common = mp_kernels.exit_head(*inputs, threshold)
        assert_same_bits([logits, uncertainty], common[:2])
        assert stays[b] == common[2][b]


def test_a_sample_at_its_threshold_leaves() -> None:
    inputs = head_inputs(20, 6, 5, 3)
    _, uncertainty, _ = mp_kernels.exit_head(*inputs, 0.5)
    assert not mp_kernels.exit_head(*inputs, uncertainty)[2].any()
    assert mp_kernels.exit_head(*inputs, uncertainty.nextafter(torch.tensor(-1.0)))[2].all()
    for b, u in enumerate(uncertainty.tolist()):
        assert not mp_kernels.exit_head(*inputs, u)[2][b]
        assert mp_kernels.exit_head(*inputs, math.nextafter(u, -1) - 1e-7)[2][b]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize(
    ("threshold", "stay"),
    [(0, [0, 1, 1]), (0.5, [0, 1, 1]), (1, [0, 0, 1]), (math.inf, [0, 0, 1]), (-1.0, [1, 1, 1])],
)
@pytest.mark.parametrize("for_each", [False, True])
def test_a_certain_a_torn_and_a_broken_prediction(
    threshold: float, stay: list[int], for_each: bool, dtype: torch.dtype
) -> None:
    """Uncertainties of exactly 0, of exactly 1, and NaN, which fails every comparison, so that the sample stays."""
    features = torch.tensor([[20.0], [0.0], [math.nan]], dtype=dtype)
    head = [torch.tensor(x, dtype=dtype) for x in ([[1.0]], [0.0], [[1000.0], [0.0]], [0.0, 0.0])]
    thresholds = torch.full((3,), threshold, dtype=torch.float32) if for_each else threshold
    logits, uncertainty, stays = mp_kernels.exit_head(features, *head, thresholds)
    assert logits[:2].tolist() == [[1000, 0], [0, 0]]
    assert uncertainty[:2].tolist() == [0, 1]
    assert uncertainty[2].isnan()
    assert stays.tolist() == [bool(s) for s in stay]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    features, *head = head_inputs(9, 12, 8, 3)
    together = mp_kernels.exit_head(features, *head, 0.9)
    for b in range(9):
        alone = mp_kernels.exit_head(features[b : b + 1], *head, 0.9)
        torch.testing.assert_close(alone, tuple(x[b : b + 1] for x in together), atol=1e-6, rtol=0)


def test_strided_inputs() -> None:
    inputs = head_inputs(9, 12, 8, 3)
    strided = [torch.stack([x, x.new_full(x.shape, math.nan)], dim=-1)[..., 0] for x in inputs]
    thresholds = torch.rand(9, 2)[:, 0]
    assert not any(x.is_contiguous() for x in (*strided, thresholds))
    got, expected = mp_kernels.exit_head(*strided, thresholds), mp_kernels.exit_head(*inputs, thresholds.contiguous())
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


# ---- several labels ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [1, 3, 77, 200])
@pytest.mark.parametrize("for_each", [False, True])
def test_several_labels_leave_by_the_least_certain_one(labels: int, for_each: bool, dtype: torch.dtype) -> None:
    inputs = head_inputs(33, 40, 24, labels, dtype)
    threshold = torch.linspace(0.3, 1, 33) if for_each else 0.7
    logits, uncertainty, stays = mp_kernels.exit_head(*inputs, threshold, multi_label=True)
    exact_logits, exact, _ = reference.exit_head(*(x.double() for x in inputs), threshold, multi_label=True)
    torch.testing.assert_close(logits, exact_logits.to(dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(uncertainty, exact.to(dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(exact, reference.label_entropy(exact_logits), atol=0, rtol=0)
    assert stays.tolist() == (uncertainty > threshold).tolist()


def test_a_head_of_no_label_is_refused() -> None:
    inputs = [*head_inputs(4, 6, 5, 3)[:3], torch.zeros(0, 5), torch.zeros(0)]
    with pytest.raises(ValueError, match=r"an exit head must have 1 label or more, .* got float32 \[0, 5\]"):
        mp_kernels.exit_head(*inputs, 0.5, multi_label=True)


# ---- gradients: refused by the operator, available in the definition ----


@pytest.mark.parametrize("result", [0, 1], ids=["logits", "uncertainty"])
@pytest.mark.parametrize("wanted", range(5), ids=["features", "dense_weight", "dense_bias", "weight", "bias"])
def test_gradient_is_refused(wanted: int, result: int) -> None:
    inputs = head_inputs(4, 6, 5, 3)
    inputs[wanted].requires_grad_()
    results = mp_kernels.exit_head(*inputs, 0.5)
    assert not results[2].requires_grad
    with pytest.raises(NotImplementedError, match=r"exit_head .* has no gradient; .* mp_kernels\.reference\.exit_head"):
        results[result].sum().backward()


def test_definition_has_the_gradient() -> None:
    inputs = [x.requires_grad_() for x in head_inputs(4, 6, 5, 3, torch.float64)]
    assert torch.autograd.gradcheck(lambda *xs: reference.exit_head(*xs, 0.5)[:2], inputs)


# ---- refusals ----

HEAD = dict(
    zip(("features", "dense_weight", "dense_bias", "weight", "bias"), head_inputs(4, 6, 5, 3), strict=True),
    threshold=0.5,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, r"features must be a tensor; got list"),
        ({"features": torch.zeros(4, 6).int()}, TypeError, r"features must be float32 or .* got int32 \[4, 6\]"),
        ({"features": torch.zeros(4)}, ValueError, r"features must have 2 dimensions; got float\d+ \[4\]"),
        ({"features": torch.zeros(4, 7)}, ValueError, r"dense_weight must be \[5, 7\] .* got float\d+ \[5, 6\]"),
        ({"dense_weight": torch.zeros(6, 5)}, ValueError, r"dense_weight must be \[6, 6\] .* got float\d+ \[6, 5\]"),
        ({"dense_weight": torch.zeros(5)}, ValueError, r"dense_weight must have 2 dimensions; got float\d+ \[5\]"),
        ({"dense_weight": torch.zeros(5, 6).half()}, TypeError, r"dense_weight must be float\d+; got float16 \[5, 6\]"),
        ({"dense_bias": torch.zeros(4)}, ValueError, r"dense_bias must be \[5\] .* got float\d+ \[4\]"),
        ({"dense_bias": torch.zeros(5).to("meta")}, ValueError, r"dense_bias must be on cpu .* on meta"),
        ({"weight": torch.zeros(3, 6)}, ValueError, r"(?<!_)weight must be \[3, 5\] .* got float\d+ \[3, 6\]"),
        ({"weight": torch.zeros(3, 5).to("meta")}, ValueError, r"(?<!_)weight must be on cpu .* on meta"),
        ({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, ValueError, r"must have 2 classes or more, .* got .*1"),
        ({"weight": torch.zeros(0, 5), "bias": torch.zeros(0)}, ValueError, r"must have 2 classes or more, .* got .*0"),
        ({"bias": torch.zeros(2)}, ValueError, r"(?<!_)bias must be \[3\] .* got float\d+ \[2\]"),
        ({"bias": torch.zeros(3, 1)}, ValueError, r"(?<!_)bias must have 1 dimension; got float\d+ \[3, 1\]"),
        ({"bias": None}, TypeError, r"(?<!_)bias must be a tensor; got NoneType"),
        ({"threshold": torch.zeros(3)}, ValueError, r"threshold must have one entry per sample, 4; got float\d+ \[3\]"),
        ({"threshold": torch.zeros(4, 1)}, ValueError, r"threshold must have 1 dimension; got float\d+ \[4, 1\]"),
        ({"threshold": torch.zeros(4).long()}, TypeError, r"threshold must be float32 or .* got int64 \[4\]"),
        ({"threshold": torch.zeros(4).to("meta")}, ValueError, r"threshold must be on cpu .* on meta"),
    ],
)
def test_refused_arguments(changed: dict, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    arguments = {
        name: x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
        for name, x in (HEAD | changed).items()
    }
    with pytest.raises(error, match=message):
        mp_kernels.exit_head(**arguments)
