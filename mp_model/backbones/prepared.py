"""The prepared form of a layer, but for what its backbone does: projections, and the token-wise rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mp_kernels import Kept, Ragged

from .attention import Relation, attend
from .forms import KeysValues, Survive, first_rows, output_of


class PreparedBlock(ABC):
    """A layer that is computed from its weights.

    Attributes:
        heads: number of heads.
        relation: the part that places play in its attention; None: none.
    """

    decides_first = True

    def __init__(self, heads: int, relation: Relation | None) -> None:
        self.heads, self.relation = heads, relation

    @abstractmethod
    def queries(self, values: Tensor, places: Tensor | None) -> Tensor:
        """Queries ``[rows, hidden]`` of entering states ``[rows, hidden]``; places: int32 ``[rows]``, if they matter."""

    @abstractmethod
    def keys_values(self, batch: Ragged) -> KeysValues:
        """As :meth:`.forms.Block.keys_values`."""

    @abstractmethod
    def projections(self, batch: Ragged) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all the tokens that enter, ``[total, hidden]`` each, in one product."""

    @abstractmethod
    def finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        """The token-wise rest of the layer, of rows ``context``, whose entering states are ``residual[index]``."""

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        """As :meth:`.forms.Block.first`."""
        if keys_values is None:
            keys_values = self.keys_values(batch)
        first = first_rows(batch.values, batch)
        places = None if batch.positions is None else batch.positions[batch.cu_seqlens[:-1]]
        key, value = keys_values.rows.chunk(2, dim=1)
        context, _ = attend(self.heads, self.queries(first, places), key, value, batch, False, relation=self.relation)
        return self.finish(context, first)

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        """As :meth:`.forms.Block.whole`."""
        if keys_values is None:
            context, importance = self._attend_to_all(batch, survive is not None)
        else:
            context, importance = self._attend_to(batch, keys_values, survive is not None)
        kept = None
        if survive is not None and importance is not None:
            (context,), kept = survive(importance, [context])
        index = None if kept is None else kept.index
        return output_of(self.finish(context, batch.values, index), kept, batch), kept

    def _attend_to_all(self, batch: Ragged, need_importance: bool) -> tuple[Tensor, Tensor | None]:
        """Context and importance; the projections are not needed after it, and their memory is free again."""
        query, key, value = self.projections(batch)
        return attend(self.heads, query, key, value, batch, need_importance, relation=self.relation)

    def _attend_to(self, batch: Ragged, keys_values: KeysValues, need_importance: bool) -> tuple[Tensor, Tensor | None]:
        """Context and importance of the batch's tokens, from keys and values that are there already."""
        asking = keys_values.asking
        query, (key, value) = self.queries(batch.values, batch.positions), keys_values.rows.chunk(2, dim=1)
        starts, entered = keys_values.cu_seqlens_q, keys_values.batch
        context, importance = attend(
            self.heads, query, key, value, entered, need_importance, starts, asking, self.relation
        )
        return context, importance if importance is None or asking is None else importance[:, asking]
