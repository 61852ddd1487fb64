"""Runs a pyramid over a packed ragged batch: the layers, the compaction after pruning and after exits.

Written over the public operators of :mod:`mp_kernels`; what runs underneath is their business. A layer is taken apart
into the steps that the pyramid needs separately: keys and values of all tokens, the rest for [CLS] alone (enough to
decide an exit), attention with importance, and the token-wise rest for the survivors. The layers are transformers' own
``BertLayer`` modules, used for their parameters; a linear layer that is not a plain ``nn.Linear`` is called as the module
it is, so it can be replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Kept, Ragged
from mp_kernels.memory import cache_blocks

from .configuration import PyramidBertConfig
from .exits import Exits, decision_features


@dataclass
class Pruning:
    """How each layer prunes.

    Attributes:
        thresholds: L floats, or None.
        top_k: L ints or shares of the entering tokens, or None.
        normalizer: see :class:`PyramidBertConfig`.
    """

    thresholds: list[float] | None
    top_k: list[int | float] | None
    normalizer: str | int | float

    @classmethod
    def of(cls, config: PyramidBertConfig) -> Pruning:
        config.check()
        return cls(config.resolved_thresholds(), config.resolved_top_k(), config.importance_normalizer)

    def happens(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 1) can prune at all; importance is never negative."""
        if self.top_k is not None:
            return self.top_k[layer - 1] != 1 or isinstance(self.top_k[layer - 1], int)
        return self.thresholds is not None and self.thresholds[layer - 1] > 0

    def layers(self) -> list[int]:
        """The layers that can prune."""
        return [layer for layer in range(1, len(self.thresholds or self.top_k or ()) + 1) if self.happens(layer)]

    def prune(
        self, layer: int, importance: Tensor, batch: Ragged, input_lengths: Tensor, stays: Tensor | None = None
    ) -> Kept:
        """Survivors of layer ``layer`` among the samples that stay.

        importance: ``[heads, total]``, of the tokens that entered the layer.
        """
        if self.top_k is not None:
            counts = top_k_counts(self.top_k[layer - 1], lengths_of(batch))
            return mp_kernels.top_k_tokens(importance, batch.cu_seqlens, counts, stays)
        importance = self.normalized(importance, batch, input_lengths)
        return mp_kernels.prune_tokens(importance, batch.cu_seqlens, self.thresholds[layer - 1], stays)

    def normalized(self, importance: Tensor, batch: Ragged, input_lengths: Tensor) -> Tensor:
        """``[..., total]`` importance, divided by what :attr:`normalizer` says instead of by the entering tokens."""
        if self.normalizer == "alive":
            return importance
        lengths = lengths_of(batch)
        normalizer = input_lengths if self.normalizer == "input" else self.normalizer
        factor = (lengths / normalizer).to(importance.dtype)
        return importance * torch.repeat_interleave(factor, lengths, output_size=importance.shape[-1])

    def soft_mask(self, layer: int, importance: Tensor, batch: Ragged, input_lengths: Tensor) -> Tensor | None:
        """What to multiply layer ``layer``'s output rows by, ``[total]``, instead of removing any; None: remove them."""
        return None


def top_k_counts(k: int | float, lengths: Tensor) -> Tensor:
    """int64 ``[batch]``: k itself, or that share of the lengths, rounded up."""
    if isinstance(k, int):
        return torch.full_like(lengths, k)
    rounding = 1e-6  # 0.55 of 20 tokens is 11, though the product in floating point lies above it
    return torch.ceil(lengths.double() * k - rounding).long()


def lengths_of(batch: Ragged) -> Tensor:
    """int64 ``[batch]``, the tokens of each sample."""
    return batch.cu_seqlens.diff().long()


def first_tokens(batch: Ragged) -> Tensor:
    """``[batch, hidden]``, each sample's [CLS]."""
    return mp_kernels.ragged_gather(batch.values, batch.cu_seqlens[:-1].long())


def embed(embeddings: nn.Module, ids_or_words: Tensor, types: Tensor, positions: Tensor, max_position: int) -> Tensor:
    """BERT's embeddings on packed rows.

    Args:
        embeddings: transformers' ``BertEmbeddings``.
        ids_or_words: int64 ``[total]`` word-piece ids, or ``[total, hidden]`` their vectors.
        types, positions: int64 ``[total]``; positions below ``max_position``.

    Returns:
        ``[total, hidden]``.
    """
    words, ids = ids_or_words, None
    if not words.is_floating_point():
        if type(embeddings.word_embeddings) is nn.Embedding and not torch.is_grad_enabled():
            words, ids = embeddings.word_embeddings.weight, ids_or_words.long()
        else:
            words = embeddings.word_embeddings(ids_or_words)
    # Every sum of a type and a position once, so that each token adds a single row on its way into LayerNorm.
    table = embeddings.token_type_embeddings.weight[:, None] + embeddings.position_embeddings.weight[:max_position]
    norm = embeddings.LayerNorm
    rows = types * max_position + positions
    return embeddings.dropout(
        mp_kernels.add_layer_norm(words, table.flatten(0, 1), norm.weight, norm.bias, norm.eps, rows, x_index=ids)
    )


def _attend(
    layer: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Ragged,
    cu_seqlens_q: Tensor | None = None,
    need_importance: bool = False,
    stays: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Context ``[total_q, hidden]`` and importance by head of projected queries, keys and values ``[total, hidden]``."""
    heads = layer.attention.self.num_attention_heads
    out, importance = mp_kernels.ragged_attention(
        *(x.unflatten(-1, (heads, -1)) for x in (query, key, value)),
        batch.cu_seqlens,
        batch.max_seqlen,
        cu_seqlens_q=cu_seqlens_q,
        need_importance=need_importance,
        by_head=True,
        stays=stays,
    )
    return out.flatten(1), importance


def _add_and_norm(output: nn.Module, x: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
    norm = output.LayerNorm
    # Under autocast a linear layer answers in half precision, while states and LayerNorm stay as they are.
    x = output.dropout(output.dense(x)).to(residual.dtype)
    return mp_kernels.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps, index)


def _finish(layer: nn.Module, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
    """The token-wise rest of a layer: output projection, feed-forward, each with residual and LayerNorm.

    context: ``[rows, hidden]``; ``residual[index]`` (or ``residual``) are the same rows' states entering the layer.
    """
    attended = _add_and_norm(layer.attention.output, context, residual, index)
    width = layer.attention.self.config.intermediate_size
    blocks = cache_blocks(attended, width * attended.element_size())
    done = [_feed_forward(layer, block) for block in blocks]
    return done[0] if len(done) == 1 else torch.cat(done)


def _feed_forward(layer: nn.Module, attended: Tensor) -> Tensor:
    dense, activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
    if type(activation).__name__ != "GELUActivation":
        grown = activation(dense(attended))
    elif type(dense) is nn.Linear and not torch.is_autocast_enabled(attended.device.type):
        # The bias is added on the way through the GELU, not copied into the product's memory before it.
        grown = mp_kernels.bias_gelu(attended @ dense.weight.t(), dense.bias)
    else:
        grown = mp_kernels.bias_gelu(dense(attended))
    return _add_and_norm(layer.output, grown, attended)


def first_token_output(layer: nn.Module, batch: Ragged, key: Tensor, value: Tensor) -> Tensor:
    """The layer's output for [CLS] alone, ``[batch, hidden]``: all that a decision reads."""
    first = first_tokens(batch)
    one_each = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=first.device)
    context, _ = _attend(layer, layer.attention.self.query(first), key, value, batch, cu_seqlens_q=one_each)
    return _finish(layer, context, first)


def rest_of_layer(
    layer: nn.Module,
    number: int,
    batch: Ragged,
    key: Tensor,
    value: Tensor,
    pruning: Pruning,
    input_lengths: Tensor,
    stays: Tensor | None = None,
) -> tuple[Ragged, Kept | None]:
    """The layer's output for the tokens that survive it, and which these are (None: all).

    Samples that do not stay (only where the layer prunes) leave by the same compaction as the pruned tokens.
    """
    query = layer.attention.self.query(batch.values)
    context, importance = _attend(layer, query, key, value, batch, need_importance=pruning.happens(number), stays=stays)
    if importance is None:
        return Ragged(_finish(layer, context, batch.values), batch.cu_seqlens, batch.max_seqlen), None
    mask = pruning.soft_mask(number, importance, batch, input_lengths)
    if mask is not None:
        softened = _finish(layer, context, batch.values) * mask.unsqueeze(1).to(context.dtype)
        return Ragged(softened, batch.cu_seqlens, batch.max_seqlen), None
    kept = pruning.prune(number, importance, batch, input_lengths, stays)
    if kept.index.shape[0] == context.shape[0]:
        return Ragged(_finish(layer, context, batch.values), batch.cu_seqlens, batch.max_seqlen), None
    values = _finish(layer, mp_kernels.ragged_gather(context, kept.index), batch.values, kept.index)
    return Ragged(values, kept.cu_seqlens, kept.max_seqlen), kept


@dataclass
class EncoderRun:
    """Result of :func:`run_encoder`.

    Attributes:
        states: ``[total, hidden]`` in the order of the batch as it came; of a pruned token, the state with which it
            entered the layer that pruned it.
        first: ``[batch, hidden]``, [CLS] after the last layer.
        tokens_per_layer: int64 ``[batch, L]``, survivors of each layer.
    """

    states: Tensor
    first: Tensor
    tokens_per_layer: Tensor


def run_encoder(layers: Sequence[nn.Module], batch: Ragged, pruning: Pruning) -> EncoderRun:
    """All layers for all samples: BERT as an encoder, with pruning."""
    input_lengths = lengths_of(batch)
    survivors = []
    settled = batch.values
    rows: Tensor | None = None  # places of the alive tokens in the batch as it came; None: all of them
    for number, layer in enumerate(layers, 1):
        entering = batch
        projections = layer.attention.self
        key, value = projections.key(entering.values), projections.value(entering.values)
        batch, kept = rest_of_layer(layer, number, entering, key, value, pruning, input_lengths)
        survivors.append(lengths_of(batch))
        if kept is not None:
            settled = entering.values if rows is None else settled.index_copy(0, rows, entering.values)
            rows = kept.index if rows is None else rows[kept.index]
    states = batch.values if rows is None else settled.index_copy(0, rows, batch.values)
    return EncoderRun(states, first_tokens(batch), torch.stack(survivors, dim=1))


@dataclass
class ClassifierRun:
    """Result of :func:`run_classifier`, one row a sample in the order of the batch as it came.

    Attributes:
        logits: ``[batch, labels]``.
        uncertainty: float32 ``[batch]``; NaN for a single label.
        exit_layer: int64 ``[batch]``, 0 to L.
        tokens_per_layer: int64 ``[batch, L]``: survivors of each layer; in layer L, and in the layer of an exit that
            decides first, the tokens that entered it; 0 after.
        pruned_by: int64 ``[total]``, the layer that pruned each token, 0 for those that none did; None unless asked for.
    """

    logits: Tensor
    uncertainty: Tensor
    exit_layer: Tensor
    tokens_per_layer: Tensor
    pruned_by: Tensor | None = None


@dataclass
class _Climb:
    """The samples on their way up, and the answers so far (of those still on their way: the last prediction)."""

    batch: Ragged
    samples: Tensor
    input_lengths: Tensor
    answers: ClassifierRun
    rows: Tensor | None  # places of the alive tokens in the batch as it came, if they are being followed

    @classmethod
    def start(cls, batch: Ragged, labels: int, layers: int, follow_tokens: bool) -> _Climb:
        size, device = batch.batch_size, batch.values.device
        rows = torch.arange(batch.values.shape[0], device=device) if follow_tokens else None
        return cls(
            batch,
            torch.arange(size, device=device),
            lengths_of(batch),
            ClassifierRun(
                logits=batch.values.new_zeros(size, labels),
                uncertainty=batch.values.new_zeros(size, dtype=torch.promote_types(batch.values.dtype, torch.float32)),
                exit_layer=torch.zeros(size, dtype=torch.int64, device=device),
                tokens_per_layer=torch.zeros(size, layers, dtype=torch.int64, device=device),
                pruned_by=None if rows is None else torch.zeros_like(rows),
            ),
            rows,
        )

    def answer(self, layer: int, logits: Tensor, uncertainty: Tensor | None = None) -> Tensor:
        """Writes the alive samples' predictions down as their answers, should they leave here; returns uncertainty."""
        answers = self.answers
        if uncertainty is None:
            certain_of_nothing = logits.shape[1] == 1
            uncertainty = (
                answers.uncertainty.new_full((logits.shape[0],), math.nan)
                if certain_of_nothing
                else mp_kernels.normalized_entropy(logits)
            )
        answers.logits = answers.logits.index_copy(0, self.samples, logits.to(answers.logits.dtype))
        answers.uncertainty = answers.uncertainty.index_copy(0, self.samples, uncertainty)
        answers.exit_layer.index_fill_(0, self.samples, layer)
        return uncertainty

    def count_tokens(self, layer: int) -> None:
        self.answers.tokens_per_layer[:, layer - 1].index_copy_(0, self.samples, lengths_of(self.batch))

    def follow(self, layer: int, kept: Kept | None, entered: Ragged, stays: Tensor | None) -> None:
        """Writes down which tokens ``layer`` pruned of those that entered it, if they are being followed."""
        if self.rows is None or kept is None:
            return
        pruned_by = torch.full_like(self.rows, layer)
        if stays is not None:
            pruned_by *= torch.repeat_interleave(stays, lengths_of(entered), output_size=self.rows.shape[0])
        self.answers.pruned_by.index_copy_(0, self.rows, pruned_by.index_fill_(0, kept.index, 0))
        self.rows = self.rows[kept.index]

    def keep_samples(self, kept: Kept | None) -> None:
        """Forgets the samples that a compaction took out of the batch."""
        if kept is not None and kept.samples is not None:
            self.samples = self.samples[kept.samples]
            self.input_lengths = self.input_lengths[kept.samples]

    def leave(self, stays: Tensor, *beside: Tensor) -> tuple[Tensor, ...]:
        """Takes the samples that do not stay out of the batch, and out of packed tensors ``beside`` it."""
        kept = mp_kernels.select_samples(self.batch.cu_seqlens, stays, self.batch.values.shape[0])
        if kept.samples.shape[0] == stays.shape[0]:
            return beside
        values, *beside = mp_kernels.ragged_gather([self.batch.values, *beside], kept.index)
        self.batch = Ragged(values, kept.cu_seqlens, kept.max_seqlen)
        self.keep_samples(kept)
        if self.rows is not None:
            self.rows = self.rows[kept.index]
        return tuple(beside)


def run_classifier(
    layers: Sequence[nn.Module],
    batch: Ragged,
    pruning: Pruning,
    exits: Exits | None,
    final_head: Callable[[Tensor], Tensor],
    labels: int,
    follow_tokens: bool = False,
) -> ClassifierRun:
    """Classifies every sample, each by the first exit that is certain enough.

    Exits that read [CLS] alone are decided first: keys and values of all tokens, everything else of [CLS] only; the rest
    of the layer is computed for the samples that stay. Where the layer also prunes, one compaction takes out both, the
    samples that leave and the tokens that are pruned: the queries of the former were then computed for nothing, a twelfth
    of a layer, but keys, values and states are not copied and the host waits once. In the last layer nothing but [CLS]
    matters.

    Args:
        layers: L ``BertLayer``.
        batch: the embeddings' output, packed.
        pruning: how the layers prune.
        exits: the open exits; None: everybody goes to layer L.
        final_head: logits ``[batch, labels]`` from layer L's [CLS] ``[batch, hidden]``.
        labels: number of labels.
        follow_tokens: whether to write down which layer pruned each token.
    """
    climb = _Climb.start(batch, labels, len(layers), follow_tokens)
    if exits is not None and exits.decides_first(0):
        logits, uncertainty, stays = exits.decide(0, first_tokens(climb.batch), climb.batch, climb.samples)
        climb.answer(0, logits, uncertainty)
        climb.leave(stays)
    for number, layer in enumerate(layers, 1):
        if climb.samples.shape[0] == 0:
            break
        decides_first = exits is not None and exits.decides_first(number)
        if decides_first or number == len(layers):
            climb.count_tokens(number)  # of a sample that leaves here: those that entered
        projections = layer.attention.self
        key, value = projections.key(climb.batch.values), projections.value(climb.batch.values)
        if number == len(layers):
            climb.answer(number, final_head(first_token_output(layer, climb.batch, key, value)))
            break
        stays = None
        if decides_first:
            first = first_token_output(layer, climb.batch, key, value)
            logits, uncertainty, stays = exits.decide(number, first, climb.batch, climb.samples)
            climb.answer(number, logits, uncertainty)
            if not pruning.happens(number):
                key, value = climb.leave(stays, key, value)
                stays = None
                if climb.samples.shape[0] == 0:
                    break
        entered = climb.batch
        climb.batch, kept = rest_of_layer(layer, number, entered, key, value, pruning, climb.input_lengths, stays)
        climb.follow(number, kept, entered, stays)
        climb.keep_samples(kept)
        if kept is not None or not decides_first:
            climb.count_tokens(number)
        if exits is not None and exits.decides_last(number):
            uncertainty = climb.answer(number, exits.heads[number](climb.batch))
            climb.leave(exits.stays(number, uncertainty, climb.samples))
    return climb.answers


def run_layers(layers: Sequence[nn.Module], batch: Ragged, pruning: Pruning) -> list[Ragged]:
    """The batch as it came and as every layer leaves it: L + 1 batches; nobody exits."""
    input_lengths = lengths_of(batch)
    outputs = [batch]
    for number, layer in enumerate(layers, 1):
        projections = layer.attention.self
        key, value = projections.key(batch.values), projections.value(batch.values)
        batch, _ = rest_of_layer(layer, number, batch, key, value, pruning, input_lengths)
        outputs.append(batch)
    return outputs


def run_features(layers: Sequence[nn.Module], batch: Ragged, pruning: Pruning, kind: str) -> list[Tensor]:
    """What the heads that decide first would read at every layer, with nobody leaving.

    Args:
        layers, batch, pruning: as for :func:`run_classifier`.
        kind: ``"cls"`` or ``"pooled"``.

    Returns:
        L + 1 tensors: features ``[batch, features]`` at layers 0 to L - 1, and layer L's [CLS] ``[batch, hidden]``, which
        the model's own head reads.
    """
    input_lengths = lengths_of(batch)
    entering = batch
    features = []
    for number, layer in enumerate([None, *layers]):
        if layer is not None:
            projections = layer.attention.self
            key, value = projections.key(entering.values), projections.value(entering.values)
            if number == len(layers):
                features.append(first_token_output(layer, entering, key, value))
                break
            batch, _ = rest_of_layer(layer, number, entering, key, value, pruning, input_lengths)
        features.append(decision_features(kind, first_tokens(batch), entering))
        entering = batch
    return features
