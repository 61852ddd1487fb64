"""The pyramid as it is defined: one sample at a time, whole layers, plain PyTorch.

A slow second route to the answers of :mod:`mp_model`, sharing nothing with it but the names of the weights. A layer is
computed for all the tokens that enter it and pruned after, as in the paper; the engine prunes inside the layer and
decides before the rest of it. Work is counted by listing the matrix products one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FASTBERT_HEADS = 2


@dataclass
class Answer:
    """The fate of one sample of n tokens.

    Attributes:
        logits: ``[labels]``; None for an encoder.
        exit_layer, uncertainty: where it left, and how uncertain it was there.
        tokens_per_layer: L counts: survivors; in the layer of the exit the tokens that entered; 0 after.
        survivors: for each layer that was computed, the positions (in the sample) that survive it.
        states: for each layer that was computed, its output for those survivors; the embeddings first.
        last_hidden_state: ``[n, hidden]``; of a pruned token, the state with which it entered the layer that pruned it.
        importance: for each layer that was computed, the importance of the tokens that entered it.
        uncertainties: the uncertainty at each exit layer passed, by the layer's number.
        flops, executed_flops: by the paper's count, and of what has to be computed for the answer.
    """

    logits: Tensor | None
    exit_layer: int
    uncertainty: float
    tokens_per_layer: list[int]
    survivors: list[Tensor]
    states: list[Tensor]
    last_hidden_state: Tensor
    importance: list[Tensor] = field(default_factory=list)
    uncertainties: dict[int, float] = field(default_factory=dict)
    flops: int = 0
    executed_flops: int = 0


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Context ``[queries, width]`` and probabilities ``[heads, queries, keys]``."""
    query, key, value = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    probabilities = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), dim=-1)
    return (probabilities @ value).transpose(0, 1).flatten(1), probabilities


def embed(weights: Mapping[str, Tensor], config: Any, ids: Tensor, types: Tensor, first_position: int = 0) -> Tensor:
    name = "bert.embeddings"
    positions = torch.arange(len(ids)) + first_position
    summed = (
        weights[f"{name}.word_embeddings.weight"][ids]
        + weights[f"{name}.position_embeddings.weight"][positions]
        + weights[f"{name}.token_type_embeddings.weight"][types]
    )
    return layer_norm(weights, f"{name}.LayerNorm", summed, config.layer_norm_eps)


def whole_layer(weights: Mapping[str, Tensor], config: Any, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of layer ``layer`` (from 1) for every token of ``x [n, hidden]``, and how much attention each received."""
    name, eps = f"bert.encoder.layer.{layer - 1}", config.layer_norm_eps
    query, key, value = (linear(weights, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
    context, probabilities = attend(query, key, value, config.num_attention_heads)
    projected = linear(weights, f"{name}.attention.output.dense", context)
    attended = layer_norm(weights, f"{name}.attention.output.LayerNorm", projected + x, eps)
    grown = F.gelu(linear(weights, f"{name}.intermediate.dense", attended))
    shrunk = linear(weights, f"{name}.output.dense", grown)
    received = probabilities.mean(0).sum(0)
    return layer_norm(weights, f"{name}.output.LayerNorm", shrunk + attended, eps), received


def survivors(config: Any, layer: int, received: Tensor, input_length: int) -> tuple[Tensor, Tensor]:
    """Survivors of layer ``layer``, as positions among the tokens that entered it, and the importance of all of these."""
    n = len(received)
    if config.importance_normalizer == "alive":
        importance = received / n
    elif config.importance_normalizer == "input":
        importance = received / input_length
    else:
        importance = received / config.importance_normalizer
    values = importance.tolist()
    if config.top_k is not None:
        k = config.top_k[layer - 1]
        if isinstance(k, float):
            k = math.ceil(Fraction(str(k)) * n)
        others = sorted(range(1, n), key=lambda j: (-values[j], j))
        alive = sorted([0, *others[: k - 1]])
    elif config.prune_thresholds is not None:
        alive = [j for j in range(n) if j == 0 or values[j] >= config.prune_thresholds[layer - 1]]
    else:
        alive = list(range(n))
    return torch.tensor(alive), importance


def tanh_head(weights: Mapping[str, Tensor], dense: str, classifier: str, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the hidden numbers that they are made from."""
    hidden = torch.tanh(linear(weights, dense, features))
    return linear(weights, classifier, hidden), hidden


def exit_logits(
    weights: Mapping[str, Tensor], config: Any, layer: int, entering: Tensor, output: Tensor, sides: Tensor
) -> tuple[Tensor, float]:
    """Prediction at a layer from the states entering it and its survivors' output (at 0 both are the embeddings).

    sides: int ``[entering]``, 0 for tokens of the first text and 1 for those of the second.

    Returns:
        Its logits and its uncertainty.
    """
    name = f"exits.{layer}"
    logits, hidden = exit_head(weights, config, name, entering, output, sides)
    uncertainty = uncertainty_of(logits, config)
    if config.exit_uncertainty == "disagreement":
        uncertainty = disagreement(weights, f"{name}.confidence", logits, hidden, uncertainty, config)
    return logits, uncertainty


def exit_head(
    weights: Mapping[str, Tensor], config: Any, name: str, entering: Tensor, output: Tensor, sides: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of an exit head, and the hidden numbers that they are made from."""
    if config.exit_head == "cls":
        return tanh_head(weights, f"{name}.dense", f"{name}.classifier", output[0])
    if config.exit_head == "pooled":
        features = torch.cat([output[0], entering.mean(0)])
        return tanh_head(weights, f"{name}.dense", f"{name}.classifier", features)
    if config.exit_head == "pair":
        first, second = (
            states.mean(0) if len(states) else torch.zeros_like(output[0])
            for states in (entering[sides == 0], entering[sides == 1])
        )
        features = torch.cat([output[0], entering.mean(0), (first - second).abs(), first * second])
        return tanh_head(weights, f"{name}.dense", f"{name}.classifier", features)
    narrow = torch.tanh(linear(weights, f"{name}.input", output))
    query, key, value = (linear(weights, f"{name}.{part}", narrow) for part in ("query", "key", "value"))
    context, _ = attend(query, key, value, FASTBERT_HEADS)
    first = linear(weights, f"{name}.output", context)[0]
    return tanh_head(weights, f"{name}.dense", f"{name}.classifier", first)


def uncertainty_of(logits: Tensor, config: Any) -> float:
    if config.problem_type == "multi_label_classification":
        chances = [1 / (1 + math.exp(-logit)) for logit in logits.tolist()]
        return max(-sum(p * math.log2(p) for p in (chance, 1 - chance) if p > 0) for chance in chances)
    log_p = torch.log_softmax(logits.detach().double(), dim=0)
    terms = [p * math.log(p) for p in log_p.exp().tolist() if p > 0]
    return -sum(terms) / math.log(len(logits)) if len(logits) > 1 else math.nan


def disagreement(
    weights: Mapping[str, Tensor], name: str, logits: Tensor, hidden: Tensor, entropy: float, config: Any
) -> float:
    """The probability, by a confidence head, that layer L answers otherwise."""
    if config.problem_type == "multi_label_classification":
        p = math.prod(max(1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))) for z in logits.tolist())
    else:
        p = max(torch.softmax(logits.double(), 0).tolist())
    clamped = min(max(p, 1e-7), 1 - 1e-7)
    doubts = (entropy, p, math.log(clamped / (1 - clamped)))
    score = linear(weights, f"{name}.hidden", hidden).item()
    score += sum(w * x for w, x in zip(weights[f"{name}.doubts.weight"][0].tolist(), doubts, strict=True))
    return 1 / (1 + math.exp(-score))


def run(
    weights: Mapping[str, Tensor],
    config: Any,
    ids: Tensor,
    types: Tensor | None = None,
    exit_thresholds: Mapping[int, float] | None = None,
    *,
    classify: bool = True,
    first_position: int = 0,
    decides_first: bool = True,
) -> Answer:
    """One sample's way up the pyramid.

    Args:
        weights: by their names in ``PyramidBertForSequenceClassification``.
        config: the model's configuration (its exit thresholds are not read).
        ids, types: int64 ``[n]``.
        exit_thresholds: the threshold of each open exit, by the layer's number; None: nobody exits.
        classify: False for the encoder alone.
        first_position: position id of [CLS].
        decides_first: whether exits are decided before the rest of their layer is computed, for the executed work.
    """
    types = torch.zeros_like(ids) if types is None else types
    open_exits = dict(exit_thresholds or {})
    if config.depth is not None and classify:
        open_exits = {layer: x for layer, x in open_exits.items() if layer < config.depth} | {config.depth: math.inf}
    x = embed(weights, config, ids, types, first_position)
    alive = torch.arange(len(ids))
    settled = {j: x[j] for j in range(len(ids))}
    answer = Answer(None, config.num_hidden_layers, math.nan, [0] * config.num_hidden_layers, [], [x], x)

    def leaves(layer: int, logits: Tensor, uncertainty: float) -> bool:
        answer.logits, answer.uncertainty, answer.exit_layer = logits, uncertainty, layer
        answer.uncertainties[layer] = answer.uncertainty
        return layer == config.num_hidden_layers or answer.uncertainty <= open_exits[layer]

    entered: list[int] = []
    left = 0 in open_exits and leaves(0, *exit_logits(weights, config, 0, x, x, types))
    layer = 0
    while not left and layer < config.num_hidden_layers:
        layer += 1
        entering, sides = x, types[alive]
        entered.append(len(entering))
        output, received = whole_layer(weights, config, layer, entering)
        among, importance = survivors(config, layer, received, len(ids))
        alive, x = alive[among], output[among]
        settled |= dict(zip(alive.tolist(), x, strict=True))
        answer.importance.append(importance)
        answer.survivors.append(alive)
        answer.states.append(x)
        answer.tokens_per_layer[layer - 1] = len(alive)
        if classify and layer == config.num_hidden_layers:
            logits, _ = tanh_head(weights, "bert.pooler.dense", "classifier", x[0])
            left = leaves(
                layer, logits, 0.0 if config.exit_uncertainty == "disagreement" else uncertainty_of(logits, config)
            )
        elif classify and layer in open_exits:
            left = leaves(layer, *exit_logits(weights, config, layer, entering, x, sides))
        if left:
            answer.tokens_per_layer[layer - 1] = len(entering)
    answer.last_hidden_state = torch.stack([settled[j] for j in range(len(ids))])
    survived = [len(kept) for kept in answer.survivors]
    answer.flops = paper_flops(config, entered, answer.tokens_per_layer)
    answer.executed_flops = executed_flops(
        config, len(ids), entered, survived, answer.exit_layer, open_exits, decides_first
    )
    return answer


# Work, in floating-point operations: a matrix product [rows, inner] x [inner, columns] is 2 rows inner columns.


def product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def attention_products(config: Any, queries: int, keys: int) -> int:
    """Scores and context, head by head."""
    heads = config.num_attention_heads
    head_dim = config.hidden_size // heads
    return sum(product(queries, head_dim, keys) + product(queries, keys, head_dim) for _ in range(heads))


def paper_flops(config: Any, entered: Sequence[int], kept: Sequence[int]) -> int:
    """Queries, keys, values, scores, context and output projection of those who entered; feed-forward of those kept."""
    d, f = config.hidden_size, config.intermediate_size
    work = 0
    for n, m in zip(entered, kept, strict=False):
        work += 3 * product(n, d, d) + attention_products(config, n, n) + product(n, d, d)
        work += product(m, d, f) + product(m, f, d)
    return work


def executed_flops(
    config: Any,
    input_length: int,
    entered: Sequence[int],
    kept: Sequence[int],
    exit_layer: int,
    open_exits: Any,
    decides_first: bool,
) -> int:
    """Work of the answer where pruned tokens leave before the output projection, and exits are decided first or late."""
    d, f = config.hidden_size, config.intermediate_size

    def keys_and_values(n: int) -> int:
        return 2 * product(n, d, d)

    def first_token(n: int) -> int:
        return 2 * product(1, d, d) + attention_products(config, 1, n) + product(1, d, f) + product(1, f, d)

    def everything_else(n: int, m: int) -> int:
        return (
            product(n, d, d) + attention_products(config, n, n) + product(m, d, d) + product(m, d, f) + product(m, f, d)
        )

    work = head_flops(config, input_length) if 0 in open_exits else 0
    for layer, (n, m) in enumerate(zip(entered, kept, strict=True), 1):
        work += keys_and_values(n)
        if layer == config.num_hidden_layers:
            work += first_token(n) + product(1, d, d) + product(1, d, config.num_labels)
        elif layer not in open_exits:
            work += everything_else(n, m)
        elif config.exit_head == "fastbert":
            work += everything_else(n, m) + head_flops(config, m)
        elif not decides_first and layer != config.depth:
            work += everything_else(n, m) + head_flops(config, n)
        else:
            work += first_token(n) + head_flops(config, n)
            if layer != exit_layer:
                work += everything_else(n, m)
    return work


def head_flops(config: Any, tokens: int) -> int:
    """An exit head; only FastBERT's reads more tokens than one."""
    d, labels = config.hidden_size, config.num_labels
    confidence = config.exit_uncertainty == "disagreement"
    if config.exit_head == "fastbert":
        width = 128
        head_dim = width // FASTBERT_HEADS
        row = FASTBERT_HEADS * (product(1, head_dim, tokens) + product(1, tokens, head_dim))
        read = product(tokens, d, width) + 2 * product(tokens, width, width)
        return read + row + 3 * product(1, width, width) + product(1, width, labels) + confidence * product(1, width, 1)
    features = {"cls": d, "pooled": 2 * d, "pair": 4 * d}[config.exit_head]
    return product(1, features, d) + product(1, d, labels) + confidence * product(1, d, 1)
