"""A kind of encoder: everything that the rest of the project asks of it.

:class:`Backbone` says it for encoders in the manner of BERT; another one changes what it does otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mp_kernels import Ragged

from .embeddings import PLAIN, embed_summed, embed_through_padding, why_embeddings_called
from .forms import PackedInputs, RaggedLayer


class Backbone:
    """A kind of encoder, in the manner of BERT unless a method says otherwise.

    Attributes:
        name: beginning of the names of its classes, such as "Roberta".
        config, encoder, classifier: transformers' own classes.
        ragged: the class that takes the place of each of its modules' classes, by that class; one of them is its layer's.
        plain_embeddings: types of modules of its embeddings whose weights say everything.
        settings: names under which its configuration keeps what others call otherwise, by these other names.
        placed: whether its layers ask for the places of tokens, so that positions cannot be chosen by the caller.
        own_head: beginnings of the names of weights that belong to its classifier's own head.
        unused: patterns of the names of weights that checkpoints hold and no classifier reads.
    """

    name: ClassVar[str]
    config: ClassVar[type[PreTrainedConfig]]
    encoder: ClassVar[type[PreTrainedModel]]
    classifier: ClassVar[type[PreTrainedModel]]
    ragged: ClassVar[Mapping[type[nn.Module], type[nn.Module]]]
    plain_embeddings: ClassVar[frozenset[type]] = PLAIN
    settings: ClassVar[Mapping[str, str]] = {}
    placed: ClassVar[bool] = False
    own_head: ClassVar[tuple[str, ...]] = ("classifier.",)
    unused: ClassVar[tuple[str, ...]] = (r"position_ids$",)

    # settings

    @property
    def model_type(self) -> str:
        """Transformers' name for it."""
        return self.config.model_type

    @property
    def encoder_name(self) -> str:
        """Name of the pyramid's encoder."""
        return f"Pyramid{self.name}Model"

    @property
    def embeddings_name(self) -> str:
        """Name of its embeddings' class."""
        (kind,) = self.plain_embeddings - PLAIN
        return kind.__name__

    @property
    def layer_name(self) -> str:
        """Name of its layers' class."""
        (layer,) = (kind for kind in self.ragged.values() if issubclass(kind, RaggedLayer))
        return layer.__name__

    def check(self, config: Any) -> None:
        """Raises ValueError for settings of a configuration with which it does not work."""
        if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
            raise ValueError("a pyramid is an encoder; is_decoder and add_cross_attention must be False")

    def first_position(self, config: Any) -> int:
        """The position of a text's first token."""
        return 0

    def embedded_width(self, config: Any) -> int:
        """Width of word vectors."""
        return config.hidden_size

    def token_types(self, config: Any) -> int:
        """Number of token types; 1 where there is nothing to choose."""
        return getattr(config, "type_vocab_size", 1)

    def last_reads_all(self, config: Any) -> bool:
        """Whether the classifier's own head reads the mean of the last layer's tokens, not the first alone."""
        return False

    def settings_of_layers(self, config: Any, chosen: slice) -> dict[str, Any]:
        """The settings that change where a model has only some layers of another one."""
        return {"num_hidden_layers": len(range(config.num_hidden_layers)[chosen])}

    # work, in multiply-accumulates

    def feed_forward_size(self, config: Any) -> int:
        """Weights of a layer's feed-forward, by which each token is multiplied."""
        return 2 * config.hidden_size * config.intermediate_size

    def windows(self, config: Any) -> list[int | None]:
        """The distance at which tokens of each layer still see each other; None: any."""
        return [None] * config.num_hidden_layers

    def final_head_size(self, config: Any) -> int:
        """Weights of the classifier's own head."""
        return config.hidden_size**2 + config.hidden_size * config.num_labels

    # modules

    def make_ragged(self, encoder: Any) -> None:
        """Gives transformers' modules of an encoder the classes that work on packed rows."""
        for module in list(encoder.modules()):
            kind = self.ragged.get(type(module))
            if kind is not None:
                module.__class__ = kind

    def layers(self, encoder: Any) -> Sequence[nn.Module]:
        """The L layers."""
        return encoder.encoder.layer

    def dtype(self, encoder: Any) -> torch.dtype:
        """Dtype of its states."""
        return encoder.embeddings.LayerNorm.weight.dtype

    def embed(self, encoder: Any, inputs: PackedInputs) -> Ragged:
        """Embeds a packed batch: ``values [total, hidden]``."""
        if self.why_embedding_modules(encoder, inputs.words.values.device) is None:
            values = embed_summed(encoder.embeddings, inputs)
        else:
            values = embed_through_padding(lambda *padded: self.call_embeddings(encoder, *padded), inputs)
        return inputs.with_values(self.project(encoder, values), self.placed)

    def embed_padded(self, encoder: Any, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
        """Embeddings ``[batch, width, hidden]`` of a padded batch, from the modules.

        words: int ids ``[batch, width]``, or vectors ``[batch, width, hidden]``; the others int ``[batch, width]``.
        """
        return self.project(encoder, self.call_embeddings(encoder, words, token_types, positions))

    def call_embeddings(self, encoder: Any, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
        """The output of the module of the embeddings, for a padded batch."""
        name = "inputs_embeds" if words.is_floating_point() else "input_ids"
        return encoder.embeddings(**{name: words}, token_type_ids=token_types, position_ids=positions)

    def project(self, encoder: Any, embedded: Tensor) -> Tensor:
        """The states that enter layer 1, of embeddings ``[..., width]``."""
        return embedded

    def why_embedding_modules(self, encoder: Any, device: torch.device) -> str | None:
        """The reason why the embeddings run in module form just now on tokens of a device; None: in prepared form."""
        return why_embeddings_called(encoder.embeddings, self.plain_embeddings, device)

    def read(self, encoder: Any, states: Tensor) -> Tensor:
        """States between layers ``[..., hidden]`` as heads and callers read them."""
        return states

    def final_head(self, model: Any, read: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of the classifier's own head, from what it reads ``[batch, hidden]``."""
        return model.classifier(read.unsqueeze(1))
