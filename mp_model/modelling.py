"""The models: a drop-in encoder that prunes, and a classifier whose samples also exit, on any backbone.

State-dict names are stock's, since the modules are: any checkpoint of a backbone loads unchanged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput, can_return_tuple

import mp_kernels
from mp_kernels import Ragged
from mp_kernels.memory import keep_freed_memory

from . import backbones, engine
from .backbones import Backbone, PackedInputs
from .backbones.int8 import to_int8
from .configuration import PyramidConfig, as_pyramid, config_class
from .engine import Pyramid
from .exits import Exits, Uncertainty, make_exit_heads
from .flops import Work
from .graphs import Graphs, Padded, Shape, can_be_captured
from .inputs import PaddedInputs, checked_values, pack_inputs, padded_inputs
from .masked import NO_SINGLE_GRAPH, MaskedRun, Wanted, is_traced, run_masked
from .problems import ONE_LABEL, SEVERAL_LABELS, VALUES
from .pruning import Pruning
from .schedule import BatchRun, run_batch
from .settings import LastSettings
from .warming import warm_up

ExitThreshold = float | str | Sequence[float] | Tensor | None


@dataclass
class PyramidOutput(ModelOutput):
    """Answers of :class:`PyramidForSequenceClassification`, one row a sample.

    As a tuple (``return_dict=False``, ``out[1]``) it is what stock BERT gives: the loss, logits, hidden states and
    attentions, as far as they are there.

    The counts of work are made when they are asked for, as ``out.flops`` or ``out["flops"]``; they are no entries of the
    mapping, and a copy made from the entries alone (as wrappers of mixed precision do) has none.

    Attributes:
        loss: scalar, where labels were given.
        logits: ``[batch, labels]``, of the exit that each sample took.
        exit_layer: int64 ``[batch]``, 0 to L.
        uncertainty: float32 ``[batch]``, of the answer, as ``config.exit_uncertainty`` says: normalised entropy where one
            label is chosen, that of the least certain label where a text may have several, NaN for values; or the
            probability that layer L would answer otherwise.
        pruned_by: int64 ``[batch, width]``, where asked for: the layer that pruned each token, 0 for those that none did,
            -1 at padding.
        hidden_states, attentions: where asked for, as those of :class:`PyramidModel`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_layer: Tensor | None = None
    uncertainty: Tensor | None = None
    pruned_by: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Stock BERT's outputs, in its order."""
        return tuple(self[name] for name in ("loss", "logits", "hidden_states", "attentions") if name in self)

    @property
    def tokens_per_layer(self) -> Tensor:
        """int64 ``[batch, L]``: survivors of each layer; in the layer of the exit the tokens that entered it; 0 after."""
        return self._counted().tokens_per_layer()

    @property
    def flops(self) -> Tensor:
        """int64 ``[batch]``, the paper's count (:func:`mp_model.flops.paper_flops`)."""
        return self._counted().flops()

    @property
    def executed_flops(self) -> Tensor:
        """int64 ``[batch]``, the matrix products that were executed (:meth:`mp_model.flops.Work.executed_flops`)."""
        return self._counted().executed_flops()

    def _counted(self) -> Work:
        work = self.__dict__.get("work")
        if work is None:
            raise AttributeError(
                "this copy of a model's answers has no counts of work; read them from the output of the model itself"
            )
        return work

    def __getitem__(self, key: Any) -> Any:
        if key in ("tokens_per_layer", "flops", "executed_flops"):
            return getattr(self, key)
        return super().__getitem__(key)


class PyramidPreTrainedModel(PreTrainedModel):
    """Loading and saving, whatever the backbone.

    A backbone's own classes inherit from this one and from transformers' class of the same task, which makes the modules,
    their names and their weights (:mod:`mp_model.families`).
    """

    backbone: ClassVar[Backbone]
    kinds: ClassVar[dict[str, Any]]
    """The classes of this task, by the type of their backbone."""
    config: PyramidConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "backbone" in vars(cls):
            cls.kinds[cls.backbone.model_type] = cls

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        if not hasattr(type(self), "backbone"):
            raise TypeError(
                f"{type(self).__name__} is for every backbone; make a model by from_pretrained or from_config"
            )
        given, config = type(config).__name__, as_pyramid(config)
        if config.backbone is not self.backbone:
            own, stock = config_class(self.backbone), self.backbone.config
            raise TypeError(f"config must be a {own.__name__} or a {stock.__name__}; got {given}")
        config.check()
        self.backbone.check(config)
        keep_freed_memory()
        super().__init__(config, *inputs, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **settings: Any) -> Any:
        """A model with random weights, of the backbone that a configuration is for, stock's or a pyramid's."""
        config = as_pyramid(config)
        return cls.kinds[config.backbone.model_type](config, **settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **settings: Any) -> Any:
        """Loads a checkpoint of any backbone, stock's or a pyramid's, as transformers does."""
        if hasattr(cls, "backbone"):
            return super().from_pretrained(pretrained_model_name_or_path, *arguments, **settings)
        config = settings.get("config")
        if not isinstance(config, PreTrainedConfig):
            where = pretrained_model_name_or_path if config is None else config
            config = PyramidConfig.from_pretrained(where, **{k: v for k, v in settings.items() if k in OF_THE_HUB})
        own = cls.kinds[as_pyramid(config).backbone.model_type]
        return own.from_pretrained(pretrained_model_name_or_path, *arguments, **settings)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """The name of stock attention: either is followed, by attention of the pyramid's own."""
        if attn_implementation not in (None, "sdpa", "eager"):
            raise ValueError(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported: a pyramid has attention of its '
                "own, without padding and in one kernel; leave the argument out, or give 'sdpa' or 'eager' as for BERT"
            )
        return "eager" if attn_implementation == "eager" or not self._supports_sdpa else "sdpa"


# Arguments by which a checkpoint is found on a hub.
OF_THE_HUB = "cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"


class PyramidModel(PyramidPreTrainedModel):
    """An encoder on packed batches, with pruning: called like transformers' encoder of the same backbone.

    ``PyramidModel.from_pretrained(checkpoint)`` finds the backbone; BERT's own class is ``PyramidBert``.
    """

    kinds: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: PreTrainedConfig, **stock: Any) -> None:
        super().__init__(config, **stock)
        self.become_ragged()
        if self.config.precision == "int8":
            to_int8(self)

    def become_ragged(self) -> None:
        """Gives the modules that transformers made the classes that work on packed rows."""
        self.backbone.make_ragged(self)
        self._no_split_modules = set(type(self)._no_split_modules or ())

    @property
    def stack(self) -> list[nn.Module]:
        """The L layers, in their order."""
        return list(self.backbone.layers(self))

    def embed(self, *arguments: Any, **named: Any) -> Ragged:
        """The embeddings of the real tokens, ``values [total, hidden]``; takes the arguments of :meth:`pack`."""
        return self.embed_packed(self.pack(*arguments, **named))

    def pack(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> PackedInputs:
        """Checks the padded inputs and takes their padding out (:func:`mp_model.inputs.pack_inputs`).

        Where there are exits that compare two texts, every sample must have two, and it is noted where each begins.
        Positions count from each sample's first real token, so the side of the padding changes nothing.
        """
        inputs = self.padded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return pack_inputs(self.config, inputs, self.config.reads_pairs)

    def padded(self, *arguments: Any, **named: Any) -> PaddedInputs:
        """The padded inputs, their shapes checked; takes the arguments of :meth:`pack`."""
        return padded_inputs(self.config, self.backbone.dtype(self), *arguments, **named)

    def run_masked(self, inputs: PaddedInputs, pruning: Pruning, attentions: bool) -> MaskedRun:
        """Runs a padded batch as it is (:func:`mp_model.masked.run_masked`); its values are checked where there are any."""
        if not torch.compiler.is_compiling() and not is_traced():
            checked_values(self.config, inputs)
        return run_masked(self.backbone, self, inputs, pruning, attentions)

    def embed_packed(self, inputs: PackedInputs) -> Ragged:
        """Embeds inputs that are checked and packed: ``values [total, hidden]``."""
        return self.backbone.embed(self, inputs)

    def read(self, states: Tensor) -> Tensor:
        """States between layers ``[..., hidden]`` in the form in which heads and callers read them."""
        return self.backbone.read(self, states)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prune_thresholds: Sequence[float] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encodes a padded batch.

        Args:
            input_ids: int ``[batch, width]``; or ``inputs_embeds``, floating ``[batch, width, hidden]``.
            attention_mask: ``[batch, width]``, 1 for real tokens, padding on either side; None: all are real.
            token_type_ids: int ``[batch, width]``; None: all 0.
            position_ids: int ``[batch, width]``; None: counted from each sample's first real token, also where the padding
                is on the left. Stock BERT counts from the first column there, and its answers then depend on the width.
            prune_thresholds: L floats, instead of the configuration's ``prune_thresholds`` or ``top_k``.
            output_attentions, output_hidden_states: whether to return them, instead of the configuration's settings; states
                may be chosen by the numbers of their layers. They take a padded run, in which nothing is saved.

        Returns:
            ``last_hidden_state [batch, width, hidden]``, 0 at padding, for a pruned token the state with which it entered
            the layer that pruned it; ``pooler_output [batch, hidden]``. Where asked for, ``hidden_states``, L + 1 tensors
            like the last, the embeddings first; ``attentions``, L tensors ``[batch, heads, width, width]``, 0 in the rows
            and columns of padding and of tokens that an earlier layer pruned.
        """
        _refuse_unsupported(kwargs)
        pruning = Pruning.of(self.config, prune_thresholds)
        wanted = Wanted.of(self.config, output_hidden_states, output_attentions)
        inputs = self.padded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs: dict[str, Any] = {}
        layers = self.stack
        if wanted.runs_masked(pruning, None, len(layers)):
            run = self.run_masked(inputs, pruning, wanted.attentions)
            states, first, outputs = run.states[-1], run.first(), run.outputs(wanted)
        else:
            if torch.compiler.is_compiling():
                torch._dynamo.graph_break(msg=NO_SINGLE_GRAPH)
            batch = self.embed_packed(pack_inputs(self.config, inputs))
            values = self.read(engine.run_encoder(layers, batch, pruning))
            first = backbones.first_rows(values, batch)
            states = mp_kernels.unpack(Ragged(values, batch.cu_seqlens, batch.max_seqlen, batch.index, batch.width))
        pooler = getattr(self, "pooler", None)
        pooled = None if pooler is None else pooler(first.unsqueeze(1))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled, **outputs)


class PyramidForSequenceClassification(PyramidPreTrainedModel):
    """A classifier whose tokens are pruned and whose samples exit, for real.

    ``PyramidForSequenceClassification.from_pretrained(checkpoint)`` finds the backbone; BERT's own class is
    ``PyramidBertForSequenceClassification``. The encoder is ``base_model``, also under stock's name.

    In training mode nobody exits; tokens are pruned as in evaluation, and gradients flow. Dropout is the backbone's, except
    that attention probabilities have none: importance is the mean of the undisturbed probabilities.
    """

    # The loss is a mean over the batch it sees; Trainer must divide by its accumulation steps.
    accepts_loss_kwargs = False
    kinds: ClassVar[dict[str, Any]] = {}
    base_model: PyramidModel
    _has_warned = False
    use_graphs: bool = True
    """Whether batches on a CUDA device may be classified by graphs."""
    _graphs: Graphs | None = None

    def __init__(self, config: PreTrainedConfig, reached_only: bool = False) -> None:
        """reached_only: whether to leave out the layers above ``config.depth``, for inference alone."""
        super().__init__(config)
        config = self.config
        if reached_only:
            layers: Any = self.backbone.layers(self.base_model)
            del layers[config.reached_layers :]
        self._settings = LastSettings()
        self.num_labels: int = config.num_labels  # type: ignore[assignment]  # derived from id2label, never None
        self.base_model.__class__ = PyramidModel.kinds[self.backbone.model_type]
        self.base_model.become_ragged()
        self.exits = make_exit_heads(config)
        self.post_init()
        self._no_split_modules = set(type(self)._no_split_modules or ())
        if config.precision == "int8":
            to_int8(self)
        # In training nobody exits, so that several devices would wait for gradients of the heads in vain.
        self._ddp_params_and_buffers_to_ignore = [f"exits.{name}" for name, _ in self.exits.named_parameters()]

    @classmethod
    def from_pretrained(cls, *arguments: Any, output_loading_info: bool = False, **settings: Any) -> Any:
        """Loads as transformers does, and notes in ``config.untrained_exits`` the exit heads that were drawn at random."""
        found: Any = super().from_pretrained(*arguments, output_loading_info=True, **settings)
        model, info = found
        drawn = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        layers = {int(name.split(".")[1]) for name in drawn if name.startswith("exits.")}
        model.config.untrained_exits = sorted(layers.union(model.config.untrained_exits or ())) or None
        return found if output_loading_info else model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._graphs = None  # weights that are moved or cast leave their memory
        return super()._apply(*args, **kwargs)

    def final_head(self, features: Tensor) -> Tensor:
        """The model's own head: logits ``[batch, labels]`` from its features, ``[batch, hidden]``."""
        return self.backbone.final_head(self, features)

    def pyramid(
        self,
        prune_thresholds: Sequence[float] | None = None,
        exit_threshold: float | str | Sequence[float] | None = None,
    ) -> Pyramid:
        """The layers and exits with all settings of a call resolved; see :meth:`forward` for the arguments.

        Raises:
            ValueError, TypeError: settings that cannot be followed.
        """
        settings = self._settings.of(self.config, prune_thresholds, exit_threshold)
        depth = None if self.training else settings.depth
        if not self.training and settings.uses_untrained:
            self._warn_of_untrained_exits()
        exits = None
        if settings.exit_thresholds is not None and not self.training:
            open_exits = [layer for layer in settings.exit_layers if depth is None or layer < depth]
            heads: dict[int, Any] = {layer: self.exits[str(layer)] for layer in open_exits}
            exits = Exits(heads, dict(zip(open_exits, settings.exit_thresholds, strict=False)), settings.uncertainty)
        pyramid = self._pyramid_of(settings.pruning, exits, settings.uncertainty)
        if depth is None:
            return pyramid
        cap: Any = self.exits[str(depth)]
        return replace(pyramid, layers=pyramid.layers[:depth], cap=cap)

    def with_pruning(self, pruning: Pruning, exits: Exits | None = None) -> Pyramid:
        """All layers with a rule of pruning, and exits, if any are open."""
        return self._pyramid_of(pruning, exits, self.config.uncertainty)

    def _pyramid_of(self, pruning: Pruning, exits: Exits | None, uncertainty: Uncertainty) -> Pyramid:
        encoder = self.base_model
        reads_all = self.backbone.last_reads_all(self.config)
        return Pyramid(
            encoder.embed_packed,
            encoder.stack,
            pruning.sparing_last() if reads_all else pruning,
            exits,
            self.final_head,
            encoder.read,
            reads_all,
            uncertainty=uncertainty,
        )

    def _warn_of_untrained_exits(self) -> None:
        """Warns, once a model, where exits are used that nobody has trained."""
        if not self._has_warned:
            self._has_warned = True
            why = self.config.why_untrained()
            warnings.warn(f"{why}; if you have trained them, set config.untrained_exits to None", stacklevel=3)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        exit_threshold: ExitThreshold = None,
        prune_thresholds: Sequence[float] | None = None,
        follow_tokens: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> PyramidOutput:
        """Classifies a padded batch.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for :class:`PyramidModel`. Open exits
                with ``"pair"`` heads need ``token_type_ids``, 0 for the first of two texts and 1 for the second, of any
                backbone.
            labels: int64 ``[batch]``, or floats for several labels a text or values, as in BERT; adds the loss. Where
                ``config.problem_type`` is None, they set it.
            exit_threshold: instead of ``config.exit_threshold``: a float, a list with one float an exit layer, a tensor
                ``[batch]`` with one for each sample, or ``"never"``, which closes the exits for this call.
            prune_thresholds: L floats, instead of the configuration's ``prune_thresholds`` or ``top_k``.
            follow_tokens: whether to return ``pruned_by``.
            output_attentions, output_hidden_states: as for :class:`PyramidModel`; the exits must be closed.

        Raises:
            ValueError, TypeError: inputs or settings that cannot be followed; the message names the argument.
        """
        _refuse_unsupported(kwargs)
        self._note_task(labels)
        own = isinstance(exit_threshold, Tensor) and not self.training
        pyramid = self.pyramid(prune_thresholds, 1.0 if isinstance(exit_threshold, Tensor) else exit_threshold)
        wanted = Wanted.of(self.config, output_hidden_states, output_attentions)
        masked = wanted.runs_masked(pyramid.pruning, pyramid.exits or pyramid.cap, len(pyramid.layers))
        if not masked and not follow_tokens and position_ids is None and inputs_embeds is None:
            given = input_ids, attention_mask, token_type_ids
            captured = self.run_captured(given, pyramid, exit_threshold if isinstance(exit_threshold, Tensor) else None)
            if captured is not None:
                assert captured.lengths is not None
                return self._output_of(captured, labels, captured.lengths.long())
        padded = self.base_model.padded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        if masked:
            return self._classify_masked(padded, labels, pyramid, wanted, follow_tokens)
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=NO_SINGLE_GRAPH)
        return self._classify_packed(padded, labels, pyramid, exit_threshold if own else None, follow_tokens)

    def warm_up(self, max_length: int | None = None, batch_size: int = 32) -> None:
        """Runs random texts, so that no later batch waits for a kernel to be compiled, or for weights to be packed.

        On a GPU every kernel is compiled that batches can meet, as the model, its dtype and its settings are now; kernels
        that Triton finds in its cache on disk are only loaded. On a CPU one short text is run.

        Args:
            max_length: tokens of the longest text; None: the model's positions.
            batch_size: most texts of a batch. With few texts, attention runs in another form than with many.

        Raises:
            ValueError: a length beyond the model's positions, or a size below 1.
        """
        warm_up(self, max_length, batch_size)

    def _note_task(self, labels: Tensor | None) -> None:
        """Sets ``config.problem_type`` where labels are seen and it is not set, as BERT does: floats are several labels."""
        if labels is not None and self.config.problem_type is None:
            numbers = labels.dtype in (torch.int64, torch.int32)
            self.config.problem_type = VALUES if self.num_labels == 1 else ONE_LABEL if numbers else SEVERAL_LABELS

    def _loss(self, labels: Tensor | None, logits: Tensor) -> Tensor | None:
        return None if labels is None else self.loss_function(labels, logits, self.config)

    def _classify_packed(
        self,
        padded: PaddedInputs,
        labels: Tensor | None,
        pyramid: Pyramid,
        exit_threshold: ExitThreshold,
        follow_tokens: bool,
    ) -> PyramidOutput:
        """Answers by the engine; exit_threshold: a tensor with one for each sample, or else it is not read."""
        asks = pyramid.exits is not None or pyramid.cap is not None
        inputs = pack_inputs(self.config, padded, asks and self.config.reads_pairs)
        batch = inputs.words
        thresholds = None
        if isinstance(exit_threshold, Tensor):
            count = 0 if pyramid.exits is None else len(pyramid.exits.heads)
            thresholds = thresholds_of_samples(exit_threshold, batch.batch_size, count)
            thresholds = thresholds.to(batch.values.device, non_blocking=True)  # offloaded weights are on no device
        run = run_batch(pyramid, inputs, self.num_labels, thresholds, follow_tokens)
        output = self._output_of(run, labels, batch.lengths)
        if run.pruned_by is not None:
            followed = Ragged(run.pruned_by, batch.cu_seqlens, batch.max_seqlen, batch.index, batch.width)
            output.pruned_by = mp_kernels.unpack(followed, fill=-1)
        return output

    def run_captured(
        self, given: Padded | PackedInputs, pyramid: Pyramid, own: Tensor | None = None
    ) -> BatchRun | None:
        """Classifies a batch by graphs of its device (:mod:`mp_model.graphs`); None: it must go another way.

        Args:
            given: a packed batch; or a padded one's ids, mask and token types, each int ``[batch, width]`` or None.
            pyramid: the model's, with a call's settings.
            own: exit thresholds of the samples' own, ``[batch]`` of a padded batch and ``[batch, exit layers]`` of a packed
                one; None: the pyramid's.
        """
        if not self.use_graphs or not can_be_captured(self, pyramid, given):
            return None
        exits = pyramid.exits
        thresholds: Tensor | list[float] = [] if exits is None else list(exits.thresholds.values())
        if own is not None and exits is not None:
            packed = isinstance(given, PackedInputs)
            thresholds = own if packed else thresholds_of_samples(own, Shape.of(given).samples, len(thresholds))
        if self._graphs is None:
            self._graphs = Graphs(self)
        return self._graphs.run(pyramid, given, thresholds)

    def _output_of(self, run: BatchRun, labels: Tensor | None, lengths: Tensor) -> PyramidOutput:
        """The output that a run's answers make; lengths: int64 ``[batch]``, the tokens that each sample came with."""
        output = PyramidOutput(
            loss=self._loss(labels, run.logits),
            logits=run.logits,
            exit_layer=run.exit_layer,
            uncertainty=run.uncertainty,
        )
        output.__dict__["work"] = Work(self.config, lengths, run.exit_layer, run.steps)
        return output

    def _classify_masked(
        self, padded: PaddedInputs, labels: Tensor | None, pyramid: Pyramid, wanted: Wanted, follow_tokens: bool
    ) -> PyramidOutput:
        """Answers by a run on the padded batch: everybody goes to layer L."""
        run = self.base_model.run_masked(padded, pyramid.pruning, wanted.attentions)
        features = run.mean() if pyramid.last_reads_all else run.first()
        logits = self.final_head(features).to(features.dtype)
        exit_layer = torch.full_like(features[:, 0], len(pyramid.layers), dtype=torch.int64)
        output = PyramidOutput(
            loss=self._loss(labels, logits),
            logits=logits,
            exit_layer=exit_layer,
            # By the definition in plain PyTorch, so that graphs need no operators of ours.
            uncertainty=self.config.uncertainty.of_last(logits, mp_kernels.reference),
            pruned_by=run.pruned_by() if follow_tokens else None,
            **run.outputs(wanted),
        )
        if not is_traced():
            output.__dict__["work"] = Work(self.config, padded.keep.sum(1), exit_layer, run.steps())
        return output


def thresholds_of_samples(exit_threshold: Tensor, batch_size: int, exit_layers: int) -> Tensor:
    """Exit thresholds ``[batch, exit layers]`` of a tensor ``[batch]`` with one for each sample.

    Raises:
        ValueError: a wrong shape, or values outside [0, 1]. Values on a device are not read: the host would wait, and
            outside the range they mean always or never.
    """
    if exit_threshold.shape != (batch_size,):
        raise ValueError(
            f"a tensor exit_threshold has one entry per sample, [{batch_size}]; got {list(exit_threshold.shape)}. "
            "For one threshold an exit layer pass a list"
        )
    on_host = exit_threshold.device.type == "cpu"
    if on_host and not bool(((exit_threshold >= 0) & (exit_threshold <= 1)).all()):
        raise ValueError(f"exit_threshold must lie in [0, 1], the range of the uncertainty; got {exit_threshold}")
    return exit_threshold.unsqueeze(1).expand(-1, exit_layers)


# Arguments of stock models that a pyramid cannot follow; None or False asks for nothing.
UNSUPPORTED = "past_key_values", "encoder_hidden_states", "encoder_attention_mask", "head_mask", "cache_position"


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    """Refuses what stock models can be asked for and a pyramid cannot follow, instead of ignoring it."""
    for name in ("use_cache", "num_items_in_batch"):  # stock encoders keep no cache either, whatever it is asked
        kwargs.pop(name, None)
    for name in UNSUPPORTED:
        asked = kwargs.pop(name, None)
        if asked is not None and asked is not False:
            raise ValueError(f"{name} is not supported: a pyramid is an encoder with all of its heads; leave it out")
    if kwargs:
        raise TypeError(f"unexpected argument {next(iter(kwargs))!r}")
