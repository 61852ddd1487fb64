"""The packed engine gives the definition's answers: predictions, exits, survivors, counts and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import mp_kernels
from mp_model import PyramidBertForSequenceClassification, engine
from mp_model.backbones.post_norm import PostNormBlock
from mp_model.pruning import Pruning, top_k_counts
from support import definition, tiny
from support.pyramids import BATCH, HEADS, LAYERS, PRUNINGS, calibrated

COUNTS = ("exit_layer", "tokens_per_layer", "flops", "executed_flops")


def thresholds_of_kind(pruning: str, head: str, kind: str) -> tuple[object, object]:
    """The same exit thresholds for the model's call and for the definition."""
    _, per_layer, uncertainties = calibrated(pruning, head)
    if kind == "never":
        return None, None
    if kind == "per_layer":
        return list(per_layer.values()), per_layer
    if kind == "scalar":
        threshold = tiny.one_exit_threshold(uncertainties)
        return threshold, dict.fromkeys(per_layer, threshold)
    thresholds = tiny.exit_threshold_each(uncertainties)
    return torch.tensor(thresholds), [dict.fromkeys(per_layer, t) for t in thresholds]


def assert_same_answers(output, answers: list[definition.Answer]) -> None:
    assert output.exit_layer.tolist() == [answer.exit_layer for answer in answers]
    assert output.tokens_per_layer.tolist() == [answer.tokens_per_layer for answer in answers]
    assert output.flops.tolist() == [answer.flops for answer in answers]
    assert output.executed_flops.tolist() == [answer.executed_flops for answer in answers]
    logits = torch.stack([answer.logits for answer in answers])
    uncertainty = torch.tensor([answer.uncertainty for answer in answers])
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.uncertainty.float(), uncertainty, atol=1e-5, rtol=0)


def pruned_by(answer: definition.Answer) -> list[int]:
    """For each token the layer that pruned it, 0 if none did; the layer of the exit prunes nothing."""
    layers = [0] * len(answer.last_hidden_state)
    for layer in range(answer.exit_layer - 1, 0, -1):
        survived = set(answer.survivors[layer - 1].tolist())
        layers = [layers[j] if j in survived else layer for j in range(len(layers))]
    return layers


def pruned_per_layer(answers: list[definition.Answer]) -> list[int]:
    """Tokens that each layer prunes, of the samples that go on."""
    return [
        sum(
            len(answer.states[layer]) - len(answer.states[layer + 1])
            for answer in answers
            if answer.exit_layer > layer + 1
        )
        for layer in range(LAYERS - 1)
    ]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["never", "scalar", "per_layer", "per_sample"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_classifier_is_the_definition(pruning: str, head: str, kind: str) -> None:
    model, _, _ = calibrated(pruning, head)
    for_call, for_definition = thresholds_of_kind(pruning, head, kind)
    answers = tiny.define(model, BATCH, for_definition)

    inputs = BATCH.padded("mixed", width=43)
    output = model(**inputs, exit_threshold=for_call, follow_tokens=True)

    assert_same_answers(output, answers)
    real = inputs["attention_mask"].bool()
    assert output.pruned_by[real].tolist() == [layer for answer in answers for layer in pruned_by(answer)]
    assert (output.pruned_by[~real] == -1).all()
    left = {answer.exit_layer for answer in answers}
    exits = model.config.resolved_exit_layers()
    assert left == {LAYERS} if kind == "never" else LAYERS in left and len(left) >= min(3, len(exits) + 1)
    pruned = pruned_per_layer(answers)
    assert sum(pruned) == 0 if pruning == "nothing" else sum(count > 0 for count in pruned) >= 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["scalar", "per_layer", "per_sample"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pruning", ["nothing", "alive", "shares"])
def test_late_decisions_are_the_same(pruning: str, head: str, kind: str, decided_late: None) -> None:
    """The whole layer runs before its exit is decided: other work, nothing else."""
    model, _, _ = calibrated(pruning, head)
    for_call, for_definition = thresholds_of_kind(pruning, head, kind)
    answers = tiny.define(model, BATCH, for_definition, decides_first=False)
    output = model(**BATCH.padded(), exit_threshold=for_call, follow_tokens=True)
    assert_same_answers(output, answers)
    real = BATCH.padded()["attention_mask"].bool()
    assert output.pruned_by[real].tolist() == [layer for answer in answers for layer in pruned_by(answer)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pruning", ["nothing", "alive", "shares"])
def test_the_module_form_is_the_definition(pruning: str, head: str) -> None:
    """With gradients recorded the layers are called as the modules that they are, and exits decided late."""
    model, thresholds, _ = calibrated(pruning, head)
    answers = tiny.define(model, BATCH, thresholds, decides_first=False)
    assert_same_answers(model(**BATCH.padded("left"), exit_threshold=list(thresholds.values())), answers)


@torch.no_grad()
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_encoder_is_the_definition(pruning: str) -> None:
    encoder = calibrated(pruning, "cls")[0].bert
    answers = tiny.define(encoder, BATCH, classify=False)

    inputs = BATCH.padded("mixed", width=43)
    output = encoder(**inputs)

    real = inputs["attention_mask"].bool()
    expected = torch.cat([answer.last_hidden_state for answer in answers])
    torch.testing.assert_close(output.last_hidden_state[real].double(), expected, atol=1e-5, rtol=0)
    assert (output.last_hidden_state[~real] == 0).all()
    first = torch.stack([answer.states[-1][0] for answer in answers])
    pooled = torch.tanh(definition.linear(tiny.weights_of(encoder), "bert.pooler.dense", first))
    torch.testing.assert_close(output.pooler_output.double(), pooled, atol=1e-5, rtol=0)


def in_dtype(model: PyramidBertForSequenceClassification, dtype: torch.dtype) -> PyramidBertForSequenceClassification:
    return model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)


# Other rows around a row may change how a matrix product rounds it, and nothing else.
ROUNDING = pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])


@torch.no_grad()
@ROUNDING
@pytest.mark.parametrize("kind", ["scalar", "per_layer", "per_sample"])
@pytest.mark.parametrize(
    ("pruning", "head"),
    [("alive", "cls"), ("shares", "pooled_from_0"), ("alive", "pair_from_0"), ("input", "fastbert")],
)
def test_permuting_the_batch_permutes_the_answers(
    pruning: str, head: str, kind: str, dtype: torch.dtype, rounding: float
) -> None:
    model = in_dtype(calibrated(pruning, head)[0], dtype)
    threshold, _ = thresholds_of_kind(pruning, head, kind)
    order = torch.randperm(len(BATCH))
    permuted_threshold = threshold[order] if isinstance(threshold, torch.Tensor) else threshold

    output = model(**BATCH.padded(width=43), exit_threshold=threshold)
    permuted = model(**BATCH.select(order.tolist()).padded(width=43), exit_threshold=permuted_threshold)

    for name in COUNTS:
        assert torch.equal(getattr(permuted, name), getattr(output, name)[order]), name
    torch.testing.assert_close(permuted.logits, output.logits[order], atol=rounding, rtol=0)
    torch.testing.assert_close(permuted.uncertainty, output.uncertainty[order], atol=rounding, rtol=0)


@torch.no_grad()
@ROUNDING
@pytest.mark.parametrize(
    ("pruning", "head"),
    [("number", "cls"), ("top_k", "pooled_from_0"), ("shares", "pair_from_0"), ("alive", "fastbert")],
)
def test_a_batch_of_one_is_its_row_in_a_batch(pruning: str, head: str, dtype: torch.dtype, rounding: float) -> None:
    _, thresholds, _ = calibrated(pruning, head)
    model, thresholds = in_dtype(calibrated(pruning, head)[0], dtype), list(thresholds.values())
    output = model(**BATCH.padded(), exit_threshold=thresholds)

    for i in range(len(BATCH)):
        alone = model(**BATCH.select([i]).padded(), exit_threshold=thresholds)
        for name in COUNTS:
            assert torch.equal(getattr(alone, name)[0], getattr(output, name)[i]), name
        torch.testing.assert_close(alone.logits[0], output.logits[i], atol=rounding, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pruning", "head"),
    [("alive", "cls"), ("input", "pooled_from_0"), ("alive", "pair_from_0"), ("shares", "fastbert")],
)
@pytest.mark.parametrize(
    "padding",
    [
        {"side": "left"},
        {"side": "mixed"},
        {"width": 41},
        {"width": 64},
        {"side": "left", "width": 64},
        {"junk": 49},
    ],
    ids=str,
)
def test_padding_changes_nothing(pruning: str, head: str, padding: dict) -> None:
    model, thresholds, _ = calibrated(pruning, head)
    thresholds = list(thresholds.values())

    output = model(**BATCH.padded(), exit_threshold=thresholds)
    padded = model(**BATCH.padded(**padding), exit_threshold=thresholds)

    for name in (*COUNTS, "logits", "uncertainty"):
        assert torch.equal(getattr(padded, name), getattr(output, name)), name


@torch.no_grad()
def test_padding_inside_a_sample_is_taken_out() -> None:
    """A mask with a hole packs like any other; positions go on counting over the hole unless they are given."""
    model, _, _ = calibrated("alive", "cls")
    whole = tiny.samples([9])
    inputs = whole.padded()
    gap = {name: torch.cat([x[:, :4], torch.zeros(1, 2, dtype=x.dtype), x[:, 4:]], dim=1) for name, x in inputs.items()}
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 4, 5, 6, 7, 8]])

    torch.testing.assert_close(model(**gap, position_ids=positions).logits, model(**inputs).logits, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mask_type", [torch.bool, torch.int32, torch.float32])
@pytest.mark.parametrize("id_type", [torch.int32, torch.int64])
def test_integer_and_mask_types_change_nothing(id_type: torch.dtype, mask_type: torch.dtype) -> None:
    model, _, _ = calibrated("alive", "cls")
    inputs = BATCH.padded()
    same = {
        "input_ids": inputs["input_ids"].to(id_type),
        "token_type_ids": inputs["token_type_ids"].to(id_type),
        "attention_mask": inputs["attention_mask"].to(mask_type),
    }
    assert torch.equal(model(**same).logits, model(**inputs).logits)


@torch.no_grad()
def test_embedded_words_and_given_positions_are_the_same_text() -> None:
    model, thresholds, _ = calibrated("alive", "cls")
    thresholds = list(thresholds.values())
    inputs = BATCH.padded()
    output = model(**inputs, exit_threshold=thresholds)

    ids = inputs.pop("input_ids")
    words = model.get_input_embeddings()(ids)
    positions = torch.arange(ids.shape[1])
    for position_ids in (None, positions[None], positions.expand(ids.shape)):
        embedded = model(**inputs, inputs_embeds=words, position_ids=position_ids, exit_threshold=thresholds)
        assert torch.equal(embedded.logits, output.logits)
        assert torch.equal(embedded.exit_layer, output.exit_layer)

    shifted = model(ids, **inputs, position_ids=positions.expand(ids.shape) + 2)
    weights = tiny.weights_of(model)
    expected = torch.stack(
        [
            definition.run(weights, model.config, sample, types, first_position=2).logits
            for sample, types in zip(BATCH.ids, BATCH.types, strict=True)
        ]
    )
    torch.testing.assert_close(shifted.logits.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_threshold_of_the_call_goes_before_the_configuration() -> None:
    model = tiny.classifier(**HEADS["cls"])
    thresholds = tiny.calibrate_exits(model, BATCH)
    asked = model(**BATCH.padded(), exit_threshold=thresholds)
    model.config.exit_threshold = thresholds
    configured = model(**BATCH.padded())
    assert torch.equal(configured.exit_layer, asked.exit_layer)
    assert len(asked.exit_layer.unique()) > 2
    assert (model(**BATCH.padded(), exit_threshold=0.0).exit_layer == LAYERS).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("head", "first"), [("cls", 1), ("cls_at_2", 2), ("pooled_from_0", 0), ("pair_from_0", 0), ("fastbert", 1)]
)
def test_everybody_leaves_at_the_first_exit(head: str, first: int) -> None:
    """u never exceeds 1, so an exit threshold of 1 empties the batch, and no later layer runs."""
    model, _, _ = calibrated("nothing", head)
    output = model(**BATCH.padded(), exit_threshold=1.0)
    assert_same_answers(output, tiny.define(model, BATCH, dict.fromkeys(model.config.resolved_exit_layers(), 1.0)))
    assert (output.exit_layer == first).all()
    assert (output.tokens_per_layer[:, first:] == 0).all()
    if first == 0:
        assert (output.flops == 0).all()
        features = {"pooled_from_0": 64, "pair_from_0": 128}[head]
        assert (output.executed_flops == 2 * (features * 32 + 32 * 3)).all()


@torch.no_grad()
def test_a_threshold_above_every_importance_leaves_cls_alone() -> None:
    by_threshold = tiny.classifier(prune_thresholds=[2.0] * LAYERS)
    by_count = tiny.classifier(top_k=[1] * LAYERS)
    outputs = [model(**BATCH.padded()) for model in (by_threshold, by_count)]
    for output in outputs:
        assert output.tokens_per_layer[:, :-1].eq(1).all()
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert_same_answers(outputs[0], tiny.define(by_threshold, BATCH))


def test_shares_round_up_as_decimal_fractions() -> None:
    """0.55 of 20 tokens is 11, though the floating-point product lies above it."""
    lengths = torch.arange(1, 513)
    for hundredths in range(1, 101):
        exact = -(-lengths * hundredths // 100)
        assert torch.equal(top_k_counts(hundredths / 100, lengths), exact), hundredths


@torch.no_grad()
def test_thresholds_may_be_zero_in_some_layers() -> None:
    model, _, _ = calibrated("alive", "cls")
    model = tiny.classifier(prune_thresholds=[0.0, model.config.prune_thresholds[1], -1.0, 0.0])
    answers = tiny.define(model, BATCH)
    assert_same_answers(model(**BATCH.padded()), answers)
    first, second, third = pruned_per_layer(answers)
    assert (first, third) == (0, 0)
    assert second > 0


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_models(layers: int) -> None:
    model = tiny.classifier(num_hidden_layers=layers, prune_thresholds=[0.05] * layers, exit_head="pooled")
    taus = dict.fromkeys(model.config.resolved_exit_layers(), 0.8)
    output = model(**BATCH.padded(), exit_threshold=0.8)
    assert_same_answers(output, tiny.define(model, BATCH, taus))


def test_a_large_batch_is_computed_as_a_small_one() -> None:
    """Without gradients a CPU takes the feed-forward of many rows (25 MiB here) in blocks that fit its cache."""
    model = tiny.classifier(num_hidden_layers=2, intermediate_size=8192, top_k=[0.8, 10])
    batch = tiny.samples([40] * 25)
    with torch.no_grad():
        in_blocks = model(**batch.padded()).logits
        one_by_one = torch.cat([model(**batch.select([i]).padded()).logits for i in range(len(batch))])
    whole = model(**batch.padded()).logits.detach()
    torch.testing.assert_close(in_blocks, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_blocks, one_by_one, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("head", ["cls", "pooled", "pair_from_0"])
def test_features_of_the_heads(head: str) -> None:
    """Heads are trained on [CLS] of every layer, and the mean of the tokens that enter it, or of each text's."""
    model, _, _ = calibrated("alive", head)
    batch = model.bert.embed(**BATCH.padded())
    features = engine.run_features(model.with_pruning(Pruning.of(model.config)), batch, model.config.exit_head)
    answers = tiny.define(model, BATCH, classify=False)

    assert len(features) == LAYERS + 1
    for layer, found in enumerate(features):
        for row, answer, types in zip(found, answers, BATCH.types, strict=True):
            expected = answer.states[layer][0]
            if head != "cls" and layer < LAYERS:
                entering = answer.states[max(layer - 1, 0)]
                expected = torch.cat([expected, entering.mean(0)])
            if head == "pair_from_0" and layer < LAYERS:
                sides = types if layer < 2 else types[answer.survivors[layer - 2]]
                a, b = (entering[sides == side].sum(0) / max(1, int((sides == side).sum())) for side in (0, 1))
                expected = torch.cat([expected, (a - b).abs(), a * b])
            torch.testing.assert_close(row.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    thresholds=st.lists(st.floats(0, 0.2), min_size=LAYERS, max_size=LAYERS),
    taus=st.lists(st.floats(0, 1), min_size=LAYERS - 1, max_size=LAYERS - 1),
    normalizer=st.sampled_from(["alive", "input", 24, 31.5]),
    head=st.sampled_from(["cls", "pooled", "pair", "fastbert"]),
    side=st.sampled_from(["left", "right", "mixed"]),
    seed=st.integers(0, 2**16),
)
def test_random_pyramids(lengths, thresholds, taus, normalizer, head, side, seed) -> None:
    model = tiny.classifier(exit_head=head, importance_normalizer=normalizer, prune_thresholds=thresholds)
    batch = tiny.samples(lengths, seed)
    answers = tiny.define(model, batch, dict(enumerate(taus, 1)))
    for answer in answers:
        for threshold, importance in zip(thresholds, answer.importance, strict=False):
            assume(((importance - threshold).abs() > tiny.TIE).all())
        assume(all(abs(u - taus[layer - 1]) > tiny.TIE for layer, u in answer.uncertainties.items() if layer < LAYERS))

    output = model(**batch.padded(side), exit_threshold=taus)

    assert_same_answers(output, answers)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pruning", "head"), [("alive", "cls"), ("top_k", "pooled_from_0"), ("alive", "pair_from_0"), ("input", "fastbert")]
)
def test_float64_is_the_definition_to_the_last_digits(pruning: str, head: str) -> None:
    model, thresholds, _ = calibrated(pruning, head)
    answers = tiny.define(model, BATCH, thresholds)
    output = in_dtype(model, torch.float64)(**BATCH.padded("left"), exit_threshold=list(thresholds.values()))
    assert output.logits.dtype == output.uncertainty.dtype == torch.float64
    assert_same_answers(output, answers)
    torch.testing.assert_close(output.logits, torch.stack([answer.logits for answer in answers]), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
@pytest.mark.parametrize("head", ["cls", "pooled_from_0", "pair_from_0", "fastbert"])
def test_half_precision_answers_are_near(head: str, dtype: torch.dtype, tolerance: float) -> None:
    model, thresholds, _ = calibrated("nothing", head)
    half = in_dtype(model, dtype)
    for layer in thresholds:
        # Everybody leaves here, so that rounding decides nothing.
        open_here = [float(layer == other) for other in thresholds]
        exact, near = (m(**BATCH.padded(), exit_threshold=open_here) for m in (model, half))
        assert torch.equal(near.exit_layer, exact.exit_layer)
        torch.testing.assert_close(near.logits.float(), exact.logits, atol=tolerance, rtol=tolerance)
    assert near.logits.dtype == dtype
    assert near.uncertainty.dtype == torch.float32

    pruned = in_dtype(calibrated("alive", head)[0], dtype)(**BATCH.padded(), exit_threshold=list(thresholds.values()))
    assert pruned.logits.isfinite().all()
    assert len(pruned.exit_layer.unique()) > 1
    assert (pruned.tokens_per_layer[:, 0] < torch.tensor(tiny.LENGTHS)).any()


@torch.no_grad()
@pytest.mark.parametrize("head", ["cls", "pooled_from_0", "pair_from_0", "fastbert"])
def test_autocast_answers_are_near(head: str) -> None:
    """Linear layers in bfloat16, states in float32: what Trainer does with ``bf16=True``."""
    model, thresholds, _ = calibrated("nothing", head)
    for layer in thresholds:
        open_here = [float(layer == other) for other in thresholds]
        exact = model(**BATCH.padded(), exit_threshold=open_here)
        with torch.autocast("cpu", torch.bfloat16):
            near = model(**BATCH.padded(), exit_threshold=open_here)
        assert torch.equal(near.exit_layer, exact.exit_layer)
        assert not torch.equal(near.logits, exact.logits)
        torch.testing.assert_close(near.logits, exact.logits, atol=0.15, rtol=0.15)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["never", "per_layer"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pruning", ["nothing", "alive", "shares"])
def test_executed_flops_are_those_of_the_matrix_products_that_run(
    pruning: str, head: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = calibrated(pruning, head)
    threshold, _ = thresholds_of_kind(pruning, head, kind)
    attention = mp_kernels.ragged_attention
    in_attention = 0

    def counted_attention(q, k, v, cu_seqlens, max_seqlen, scale=None, *, cu_seqlens_q=None, **options):
        nonlocal in_attention
        queries = (cu_seqlens if cu_seqlens_q is None else cu_seqlens_q).diff().long()
        computed = 1 if options.get("stays") is None else options["stays"]
        in_attention += 4 * int((queries * cu_seqlens.diff() * computed).sum()) * q[0].numel()
        return attention(q, k, v, cu_seqlens, max_seqlen, scale, cu_seqlens_q=cu_seqlens_q, **options)

    def counted_layer(x, cu_seqlens, *others):
        nonlocal in_attention
        in_attention += 4 * int((cu_seqlens.diff().long() ** 2).sum()) * x.shape[1]
        return mp_kernels.post_norm_layer(x, cu_seqlens, *others)

    def counted_first(x, cu_seqlens, *others):
        nonlocal in_attention
        in_attention += 4 * x.numel()
        return mp_kernels.post_norm_first(x, cu_seqlens, *others)

    monkeypatch.setattr(mp_kernels, "ragged_attention", counted_attention)
    monkeypatch.setattr(PostNormBlock, "_layer", staticmethod(counted_layer))
    monkeypatch.setattr(PostNormBlock, "_first", staticmethod(counted_first))

    def of_head(features, dense, _, classifier, *__, **___):
        return 2 * features[0] * (dense[0] * dense[1] + classifier[0] * classifier[1])

    def of_layer(x, weight, *_, **__):
        return 2 * x[0] * weight[0] * weight[1]

    def of_rest(x, residual, index, dense, norm, eps, grow, shrink, *_, **__):
        return sum(of_layer(x, weight) for weight, *_ in (dense, grow, shrink))

    def of_whole(x, cu_seqlens, max_seqlen, heads, projections, *rest, **__):
        return of_layer(x, projections[0]) + of_rest(x, x, None, *rest)

    def of_first(x, cu_seqlens, max_seqlen, heads, queries, keys_values, *rest, **__):
        first = [cu_seqlens[0] - 1, x[1]]
        return of_layer(first, queries[0]) + of_layer(x, keys_values[0]) + of_rest(first, first, None, *rest)

    ops = torch.ops.mp_kernels
    formulas = {ops.linear: of_layer, ops.post_norm_rest: of_rest, ops.post_norm_layer: of_whole}
    formulas[ops.post_norm_first] = of_first
    with FlopCounterMode(display=False, custom_mapping={**formulas, ops.exit_head: of_head}) as counter:
        output = model(**BATCH.padded(), exit_threshold=threshold)

    assert int(output.executed_flops.sum()) == in_attention + counter.get_total_flops()
