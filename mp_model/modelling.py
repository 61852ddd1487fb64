"""The models: a drop-in BERT encoder that prunes, and a classifier whose samples also exit.

State-dict names are stock BERT's, since the modules are: any BERT checkpoint loads unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler, BertPreTrainedModel

import mp_kernels
from mp_kernels import Ragged
from mp_kernels.memory import keep_freed_memory, read_by_host

from . import engine
from .configuration import PyramidBertConfig
from .exits import Exits, make_exit_heads
from .flops import executed_flops, paper_flops, tokens_of_answers


@dataclass
class PyramidOutput(ModelOutput):
    """Answers of :class:`PyramidBertForSequenceClassification`, one row a sample.

    Attributes:
        loss: scalar, where labels were given.
        logits: ``[batch, labels]``, of the exit that each sample took.
        exit_layer: int64 ``[batch]``, 0 to L.
        uncertainty: float32 ``[batch]``, normalised entropy of the answer; NaN for a single label.
        tokens_per_layer: int64 ``[batch, L]``: survivors of each layer; in the layer where the sample left, the tokens
            that entered it; 0 after.
        flops: int64 ``[batch]``, the paper's count (:func:`mp_model.flops.paper_flops`).
        executed_flops: int64 ``[batch]``, what was computed (:func:`mp_model.flops.executed_flops`).
        pruned_by: int64 ``[batch, width]``, where asked for: the layer that pruned each token, 0 for those that none did,
            -1 at padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_layer: Tensor | None = None
    uncertainty: Tensor | None = None
    tokens_per_layer: Tensor | None = None
    flops: Tensor | None = None
    executed_flops: Tensor | None = None
    pruned_by: Tensor | None = None


class PyramidBertPreTrainedModel(BertPreTrainedModel):
    """Loading and saving, as for any BERT."""

    config_class = PyramidBertConfig
    config: PyramidBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = False
    _keys_to_ignore_on_load_unexpected = (r"^cls\.", r"position_ids$")


class PyramidBert(PyramidBertPreTrainedModel):
    """BERT's encoder on packed batches, with pruning: called like ``transformers.BertModel``."""

    def __init__(self, config: PyramidBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        config.check()
        if config.is_decoder or config.add_cross_attention:
            raise ValueError("a pyramid is an encoder; is_decoder and add_cross_attention must be False")
        keep_freed_memory()
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def embed(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Ragged:
        """Checks the padded inputs, packs them and embeds the real tokens: ``values [total, hidden]``.

        Positions count from each sample's first real token, so the side of the padding changes nothing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "give either input_ids or inputs_embeds; got " + ("both" if input_ids is not None else "none")
            )
        source = input_ids if input_ids is not None else inputs_embeds
        if input_ids is not None and not (_is_integer_tensor(input_ids) and input_ids.dim() == 2):
            raise ValueError(f"input_ids must be int64 or int32 [batch, width]; got {_describe(input_ids)}")
        hidden, dtype = self.config.hidden_size, self.embeddings.LayerNorm.weight.dtype
        if inputs_embeds is not None and not (
            isinstance(inputs_embeds, Tensor)
            and inputs_embeds.dtype == dtype
            and inputs_embeds.dim() == 3
            and inputs_embeds.shape[2] == hidden
        ):
            raise ValueError(
                f"inputs_embeds must be {str(dtype).removeprefix('torch.')} [batch, width, {hidden}] like the model; "
                f"got {_describe(inputs_embeds)}"
            )
        shape, device = source.shape[:2], source.device
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.bool, device=device)
        for name, x, shapes in (
            ("attention_mask", attention_mask, (shape,)),
            ("token_type_ids", token_type_ids, (shape,)),
            ("position_ids", position_ids, (shape, (1, shape[1]))),
        ):
            if x is None:
                continue
            if not isinstance(x, Tensor) or x.shape not in shapes:
                raise ValueError(f"{name} must be [batch, width] like the input, {list(shape)}; got {_describe(x)}")
            if name != "attention_mask" and not _is_integer_tensor(x):
                raise ValueError(f"{name} must be int64 or int32; got {_describe(x)}")
        keep = attention_mask != 0
        if position_ids is None:
            first = keep.byte().argmax(1, keepdim=True) if shape[1] else 0
            position_ids = torch.arange(shape[1], device=device) - first
        position_ids = position_ids.expand(shape)
        limits = {
            "position_ids": (position_ids, self.config.max_position_embeddings, "; truncate the text"),
            "token_type_ids": (token_type_ids, self.config.type_vocab_size, ""),
            "input_ids": (input_ids, self.config.vocab_size, "; was it made by this model's tokenizer?"),
        }
        lengths, highest_position = self._checked_extents(keep, limits)
        packed = mp_kernels.pack(source, keep, lengths)
        rows = packed.index
        positions = position_ids.reshape(-1)[rows]
        types = torch.zeros_like(rows) if token_type_ids is None else token_type_ids.reshape(-1)[rows].long()
        packed.values = engine.embed(self.embeddings, packed.values, types, positions, highest_position + 1)
        return packed

    @staticmethod
    def _checked_extents(
        keep: Tensor, limits: dict[str, tuple[Tensor | None, int, str]]
    ) -> tuple[tuple[int, int], int]:
        """All that the host must know of a padded batch, in one read.

        Args:
            keep: bool ``[batch, width]``, the real tokens.
            limits: by name, the values ``[batch, width]``, how many of them there can be, and a hint for who passes them.
                The first are the positions.

        Returns:
            How many real tokens there are, in all and in the longest sample; and the highest position.

        Raises:
            ValueError: a sample without a token; a value outside its limits, at a real token.
        """
        if keep.shape[0] == 0:
            return (0, 0), -1
        given = {name: entry for name, entry in limits.items() if entry[0] is not None}
        counts = keep.sum(1)
        facts = [counts.sum(), counts.amax(), counts.amin(), counts.argmin()]
        if keep.shape[1]:
            inside = [torch.where(keep, values, 0) for values, _, _ in given.values()]
            facts += [extreme for values in inside for extreme in values.aminmax()]
        total, longest, shortest, shortest_row, *extremes = read_by_host(torch.stack([x.long() for x in facts]))
        if shortest == 0:
            raise ValueError(
                f"attention_mask has no token in row {shortest_row}; every sample needs at least [CLS], drop the row"
            )
        for (name, (_, limit, hint)), lowest, highest in zip(given.items(), extremes[::2], extremes[1::2], strict=True):
            if lowest < 0 or highest >= limit:
                wrong = lowest if lowest < 0 else highest
                raise ValueError(f"{name} must lie in 0..{limit - 1}; got {wrong}{hint}")
        return (total, longest), extremes[1]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Encodes a padded batch.

        Args:
            input_ids: int ``[batch, width]``; or ``inputs_embeds``, floating ``[batch, width, hidden]``.
            attention_mask: ``[batch, width]``, 1 for real tokens, padding on either side; None: all are real.
            token_type_ids: int ``[batch, width]``; None: all 0.
            position_ids: int ``[batch, width]``; None: counted from each sample's first real token.

        Returns:
            ``last_hidden_state [batch, width, hidden]``, 0 at padding, for a pruned token the state with which it entered
            the layer that pruned it; ``pooler_output [batch, hidden]``.
        """
        _refuse_unsupported(self.config, kwargs)
        batch = self.embed(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        run = engine.run_encoder(self.encoder.layer, batch, engine.Pruning.of(self.config))
        states = mp_kernels.unpack(Ragged(run.states, batch.cu_seqlens, batch.max_seqlen, batch.index, batch.width))
        pooled = None if self.pooler is None else self.pooler(run.first.unsqueeze(1))
        output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict


class PyramidBertForSequenceClassification(PyramidBertPreTrainedModel):
    """A BERT classifier whose tokens are pruned and whose samples exit, for real.

    In training mode nobody exits; tokens are pruned as in evaluation, and gradients flow. Dropout is BERT's, except that
    ``attention_probs_dropout_prob`` is not applied: importance is the mean of the undisturbed probabilities.
    """

    # The loss is a mean over the batch it sees; Trainer must divide by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: PyramidBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = PyramidBert(config)
        dropout = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.exits = make_exit_heads(config)
        self.post_init()

    def final_head(self, first: Tensor) -> Tensor:
        """The model's own head: logits ``[batch, labels]`` from layer L's [CLS] ``[batch, hidden]``."""
        return self.classifier(self.dropout(self.bert.pooler(first.unsqueeze(1))))

    def _open_exits(self, exit_threshold: float | Sequence[float] | Tensor | None, batch_size: int) -> Exits | None:
        if self.training:
            return None
        layers = self.config.resolved_exit_layers()
        if isinstance(exit_threshold, Tensor):
            if exit_threshold.shape != (batch_size,):
                raise ValueError(
                    f"a tensor exit_threshold has one entry a sample, [{batch_size}]; got {list(exit_threshold.shape)}. "
                    "For one threshold an exit layer pass a list"
                )
            if self.num_labels == 1:
                raise ValueError(
                    "exit_threshold needs 2 labels or more: with one label a prediction has no uncertainty"
                )
            # Values on a device are not read: the host would wait, and outside the range they mean always or never.
            on_host = exit_threshold.device.type == "cpu"
            if on_host and not bool(((exit_threshold >= 0) & (exit_threshold <= 1)).all()):
                raise ValueError(
                    f"exit_threshold must lie in [0, 1], the range of the uncertainty; got {exit_threshold}"
                )
            thresholds = [exit_threshold.to(self.device, non_blocking=True)] * len(layers)
        else:
            thresholds = self.config.resolved_exit_threshold(exit_threshold)
            if thresholds is None:
                return None
        heads = {layer: self.exits[str(layer)] for layer in layers}
        return Exits(heads, self.config.exit_head, dict(zip(layers, thresholds, strict=True)))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        exit_threshold: float | Sequence[float] | Tensor | None = None,
        follow_tokens: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> PyramidOutput | tuple[Tensor, ...]:
        """Classifies a padded batch.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for :class:`PyramidBert`.
            labels: int64 ``[batch]`` (or floats, by ``config.problem_type``, as in BERT); adds the loss.
            exit_threshold: instead of ``config.exit_threshold``: a float, a list with one float an exit layer, or a tensor
                ``[batch]`` with one for each sample.
            follow_tokens: whether to return ``pruned_by``.

        Raises:
            ValueError, TypeError: inputs or settings that cannot be followed; the message names the argument.
        """
        _refuse_unsupported(self.config, kwargs)
        pruning = engine.Pruning.of(self.config)
        batch = self.bert.embed(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        exits = self._open_exits(exit_threshold, batch.batch_size)
        run = engine.run_classifier(
            self.bert.encoder.layer, batch, pruning, exits, self.final_head, self.num_labels, follow_tokens
        )
        lengths = engine.lengths_of(batch)
        decided = exits.thresholds.keys() if exits is not None else ()
        tokens = tokens_of_answers(run.tokens_per_layer, lengths, run.exit_layer)
        output = PyramidOutput(
            loss=None if labels is None else self._loss(run.logits, labels),
            logits=run.logits,
            exit_layer=run.exit_layer,
            uncertainty=run.uncertainty,
            tokens_per_layer=tokens,
            flops=paper_flops(self.config, tokens, lengths, run.exit_layer),
            executed_flops=executed_flops(
                self.config, run.tokens_per_layer, lengths, run.exit_layer, decided, pruning.layers()
            ),
        )
        if run.pruned_by is not None:
            followed = Ragged(run.pruned_by, batch.cu_seqlens, batch.max_seqlen, batch.index, batch.width)
            output.pruned_by = mp_kernels.unpack(followed, fill=-1)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem is None:
            integers = not labels.is_floating_point()
            problem = "regression" if self.num_labels == 1 else "single_label" if integers else "multi_label"
        if problem == "regression":
            return F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        if problem.startswith("single_label"):
            return F.cross_entropy(logits, labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, labels)


def _is_integer_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.int64, torch.int32)


def _describe(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def _refuse_unsupported(config: PyramidBertConfig, kwargs: dict[str, Any]) -> None:
    """What BertModel can return and a pyramid cannot is refused when asked for, not ignored."""
    for name in ("output_attentions", "output_hidden_states", "past_key_values", "encoder_hidden_states", "use_cache"):
        asked = kwargs.pop(name, None)
        if asked or (asked is None and name.startswith("output_") and getattr(config, name, False)):
            raise ValueError(f"{name} is not supported: a pyramid keeps no padded states or attention matrices")
    kwargs.pop("encoder_attention_mask", None)
    kwargs.pop("num_items_in_batch", None)
    if kwargs:
        raise TypeError(f"unexpected argument {next(iter(kwargs))!r}")
