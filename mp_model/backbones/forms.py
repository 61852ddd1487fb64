"""A layer as the engine sees it, and the decision between its two forms.

The *module form* calls the model's own modules, so whatever was done to them takes effect: hooks, adapters, sharding,
offloading, pruned, re-parametrised or quantised layers. Training uses it. The *prepared form* works on the weights
themselves, packed and fused for inference; it is taken where the weights say everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, itemgetter
from types import MethodType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from mp_kernels import Kept, Ragged

# Chooses a layer's survivors by the importance, float32 [heads, total], of the tokens that entered; returns their rows of
# some tensors [total, ...], and which tokens they are; None: all survive.
Survive = Callable[[Tensor, Sequence[Tensor]], tuple[Sequence[Tensor], Kept | None]]


@dataclass
class PackedInputs:
    """A packed batch before the embeddings.

    Attributes:
        words: the real tokens; ``values`` are int64 word-piece ids ``[total]``, or their vectors ``[total, hidden]``.
        token_types: int64 ``[total]``.
        positions: int64 ``[total]``.
        positions_end: host int above every position.
    """

    words: Ragged
    token_types: Tensor
    positions: Tensor
    positions_end: int

    def with_values(self, values: Tensor, placed: bool = False) -> Ragged:
        """The same batch of other rows; placed: whether they are to know their tokens' places in the text."""
        words = self.words
        positions = places_of(words) if placed else None
        return replace(words, values=values, positions=positions)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return self.words.values.shape[0]


def places_of(batch: Ragged) -> Tensor:
    """int32 ``[total]``, the place of each row in its sample."""
    total = batch.values.shape[0]
    rows = torch.arange(total, dtype=torch.int32, device=batch.cu_seqlens.device)
    return rows - torch.repeat_interleave(batch.cu_seqlens[:-1], batch.lengths, output_size=total)


def output_of(values: Tensor, kept: Kept | None, entering: Ragged) -> Ragged:
    """The packed batch of a layer's output rows; kept: those that survived, None: all that entered."""
    return replace(entering, values=values, index=None, width=None) if kept is None else entering.reduced(values, kept)


def first_rows(values: Tensor, batch: Ragged) -> Tensor:
    """``[batch, ...]``, each sample's [CLS] among the rows ``[total, ...]``."""
    return values.index_select(0, batch.cu_seqlens[:-1])


@dataclass
class KeysValues:
    """Keys and values of all samples that entered a layer, also where only some of them still ask.

    Attributes:
        rows: ``[total, 2 hidden]``.
        batch: the samples that entered; its values are not read.
        asking: int64 ``[total']``, the rows of the samples that still ask; None: all.
        cu_seqlens_q: int32 ``[batch + 1]``, the first row of each sample among those; empty for a sample that does not.
    """

    rows: Tensor
    batch: Ragged
    asking: Tensor | None = None
    cu_seqlens_q: Tensor | None = None

    def asked_by(self, stays: Tensor, asking: Tensor) -> KeysValues:
        """The same keys and values where only some samples go on; they stay where they lie.

        stays: bool ``[batch]``; asking: int64 ``[total']``, the rows of the samples that stay.
        """
        ends = torch.where(stays, self.batch.lengths, 0).cumsum(0)
        return KeysValues(self.rows, self.batch, asking, torch.nn.functional.pad(ends, (1, 0)).int())


class Block(Protocol):
    """One layer of a backbone on packed rows.

    The states that it takes and gives are those between layers: of backbones that normalise first, the sums of the
    residuals.
    """

    decides_first: bool
    """Whether :meth:`keys_values` and :meth:`first` can be had before, and without, the rest of the layer."""

    def keys_values(self, batch: Ragged) -> KeysValues:
        """Keys and values of the tokens that enter the layer."""
        ...

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        """The layer's output for [CLS] alone, ``[batch, hidden]``: all that a decision or the last head reads."""
        ...

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        """The layer's output for the tokens that survive it, and which these are (None: all).

        Args:
            batch: the tokens that enter the layer.
            survive: the choice of survivors; None: all, and no importance is computed.
            keys_values: what :meth:`keys_values` gave, for these rows or for more samples, where it was called before.
        """
        ...


@dataclass
class ModuleBlock:
    """The module form: the layer is called as the module that it is."""

    layer: nn.Module
    decides_first = False

    def keys_values(self, batch: Ragged) -> KeysValues:
        raise NotImplementedError("a module computes its layer whole")

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        return self.layer(batch.values, batch, None, True)

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        kept: Kept | None = None

        def choose(importance: Tensor, rows: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept | None]:
            nonlocal kept
            assert survive is not None
            rows, kept = survive(importance, rows)
            return rows, kept

        values = self.layer(batch.values, batch, None if survive is None else choose)
        return output_of(values, kept, batch), kept


class RaggedLayer(nn.Module):
    """A backbone's layer on the packed rows of a batch; its modules, their names and weights are transformers' own.

    A class of a backbone inherits from this one and from transformers', and calls the latter's modules in ``forward``:
    ``forward(values, batch, survive=None, first_only=False)``, the module form of a whole layer. It returns the output for
    the tokens that go on, one tensor.

    Args of ``forward``:
        values: ``[total, hidden]``, the rows that enter; ``[batch, width, hidden]`` for a masked batch.
        batch: their samples, a :class:`Ragged` or a :class:`.attention.MaskedBatch`; its own values are not read.
        survive: the choice of survivors; None: all, or the batch is masked and nothing is taken out.
        first_only: whether to compute the output for [CLS] alone, ``[batch, hidden]``.
    """

    plain: ClassVar[frozenset[type]]
    """Types of the layer and its modules whose weights say everything."""

    def outlying(self) -> Sequence[tuple[nn.Module, ...]]:
        """Linear layers some of whose inputs may be far larger than the others; those that read the same rows together."""
        return ()

    def why_modules(self, device: torch.device) -> str | None:
        """The reason why the layer runs in module form just now on rows of a device; None: in prepared form."""
        raise NotImplementedError

    def block(self, device: torch.device) -> Block:
        """The layer in the form that applies to it just now on rows of a device."""
        raise NotImplementedError


def why_layer_modules(layer: nn.Module, device: torch.device) -> str | None:
    """The reason why a layer runs in module form just now on rows of a device; None: it runs in prepared form."""
    if not isinstance(layer, RaggedLayer):
        return f"the layer is a {type(layer).__name__}"
    return layer.why_modules(device)


def block_of(layer: nn.Module, device: torch.device) -> Block:
    """A layer in the form that applies to it just now on rows of a device."""
    return layer.block(device) if isinstance(layer, RaggedLayer) else ModuleBlock(layer)


def modules_within(module: nn.Module, activation: str) -> Iterator[nn.Module]:
    """A module and every one that it holds, but for an activation that the prepared form calls, whatever it is.

    From the dictionaries, since attributes of modules are found slowly, and every layer asks every time.

    activation: name of the activation; a GELU is computed by the prepared form itself.
    """
    modules = [module]
    for found in modules:
        yield found
        for name, part in found._modules.items():
            if part is not None and (name != activation or type(part) is GELUActivation):
                modules.append(part)


def why_modules_now(device: torch.device) -> str | None:
    """The reason why every module must be called as it is just now, whatever it holds; None: there is none."""
    if torch.is_grad_enabled():
        return "gradients are recorded"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if torch.compiler.is_compiling():
        return "the model is being compiled"
    return None


TRAINING, DTYPE = itemgetter("training"), attrgetter("dtype")
OBJECTS = itemgetter("_modules", "_forward_hooks", "_forward_pre_hooks")
TENSORS = itemgetter("_parameters", "_buffers")
SELDOM = "forward", "_is_fsdp_managed_module"  # entries of a module's dictionary that are there for a reason


class PlainModules:
    """A module and its parts, which :func:`why_modules` found plain, and all that the finding rests on, to look at soon.

    Everything is looked at by functions that loop in C, since every layer of every batch asks.

    modules: the module first.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.own: list[dict[str, Any]] = [module.__dict__ for module in modules]
        self.repeated, self.names = [entries for entries in self.own for _ in SELDOM], SELDOM * len(modules)
        self.tensors = [x for x in _members(TENSORS, self.own) if x is not None]
        self.found = self._now()

    def hold(self, whole: nn.Module) -> bool:
        """Whether they are that module and its parts, and nothing has changed; False: it must be looked at anew."""
        # The first is another one in copies for several devices, which hold what the original holds.
        return self.modules[0] is whole and self._now() == self.found

    def _now(self) -> list[Any]:
        """All that is to stay the same: a hook adds to it, and tensors, whose values nobody wants compared, have numbers."""
        return [
            *map(type, self.modules),
            *map(TRAINING, self.own),
            *map(dict.get, self.repeated, self.names),
            *_members(OBJECTS, self.own),
            *map(id, _members(TENSORS, self.own)),
            *map(type, self.tensors),
            *map(DTYPE, self.tensors),
        ]


def _members(kinds: Callable[[Any], tuple[Any, ...]], own: Sequence[dict[str, Any]]) -> Iterator[Any]:
    """All that modules hold of some kinds, from their dictionaries."""
    return chain.from_iterable(map(dict.values, filter(None, chain.from_iterable(map(kinds, own)))))


def why_modules(modules: Iterable[nn.Module], plain: frozenset[type], complete: bool = True) -> str | None:
    """The reason why one of these modules must be called as it is; None where their weights say everything.

    Hooks for all modules at once (``register_module_forward_hook``) are no reason: profilers and counters of work set
    them, which are to see what runs without them.

    Args:
        modules: all modules of a part of the model.
        plain: the types whose weights say everything.
        complete: whether a parameter that a module could have and lacks, such as a bias, is a reason.
    """
    dtypes = set()
    for module in modules:
        kind = type(module)
        if kind not in plain:
            return f"a layer is a {kind.__module__}.{kind.__qualname__}"
        if module.training:
            return "the model is in training mode"
        # Pruned and weight-normed layers compute a weight in a hook, and full sharding gathers it there. Hooks of the
        # backward pass have nothing to wait for here, without gradients.
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a {kind.__name__} has hooks"
        # Offloading replaces `forward` on the instance, and leaves the class's own there when it ends.
        if "forward" in module.__dict__ and module.forward != MethodType(kind.forward, module):
            return f"the forward of a {kind.__name__} is replaced"
        if "_is_fsdp_managed_module" in module.__dict__:
            return f"a {kind.__name__} is sharded"
        if kind is nn.Linear and "weight" not in module._parameters:
            return "a Linear computes its weight"
        if kind is nn.Embedding and module.max_norm is not None:
            return "an Embedding scales its rows"
        for name, parameter in module._parameters.items():
            if parameter is None:
                if complete:
                    return f"a {kind.__name__} has no {name}"
                continue
            if type(parameter) is not nn.Parameter:
                return f"a {kind.__name__} holds a {type(parameter).__name__}"
            if parameter.is_floating_point():
                dtypes.add(parameter.dtype)
    return "the weights have several dtypes" if len(dtypes) > 1 else None
