"""Whole runs of a classifier on a CUDA device as graphs, which the host starts with one call for many kernels.

A layer of BERT-base takes a modern device some fifty microseconds, and the host as much for each of its dozen kernels, so
that launched one by one they leave the device idle most of the time. The layers of :mod:`mp_model.bounded` are fixed
sequences of launches, so they are captured, in *segments* of layers, for a room of samples, columns and rows, and replayed.
Between segments the host learns how many rows are left and takes the graph with the least room that holds them.

Graphs hold addresses of weights. They are used only while the model is the one that was captured: its modules, parameters
and hooks are looked at in every call, while the device works.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Ragged, reference

from .backbones import PackedInputs
from .backbones.forms import why_modules_now
from .bounded import Board, Held, can_be_bounded, run_bounded_embeddings, run_bounded_layer
from .engine import Arrived, Decided, Pyramid, StepResult
from .exits import Uncertainty
from .inputs import Bounded, PaddedInputs, understood
from .schedule import BatchRun

MOST_ROWS = 2**18  # of a batch, padding among them, for the sake of memory
MOST_ROOMS = 32
FIRST_LAYERS = 2  # of a batch's first segment, where it may shrink
ROOMY = 8192  # rows from which two layers take longer than the host, which therefore counts after every two


def room_for_rows(rows: int) -> int:
    """Room for so many rows and one more: at most an eighth more than needed, in multiples of 64."""
    step = max(64, 1 << max(0, rows.bit_length() - 4))
    return (rows // step + 1) * step


def room_for_samples(samples: int) -> int:
    """Room for so many samples: two significant bits."""
    step = max(1, 1 << max(0, (samples - 1).bit_length() - 2))
    return -(-samples // step) * step


def room_for_columns(width: int) -> int:
    """Room for so many columns, in multiples of 16."""
    return -(-width // 16) * 16


# Ids, mask and token types of a padded batch, each int [batch, width] or None.
Padded = Sequence[Tensor | None]


class Shape(NamedTuple):
    """Samples of a batch, tokens of the longest and rows in memory, or the room for them."""

    samples: int
    width: int
    rows: int

    @classmethod
    def of(cls, given: Padded | PackedInputs) -> Shape:
        """The shape of a batch."""
        if isinstance(given, PackedInputs):
            return cls(given.words.batch_size, given.words.max_seqlen, given.tokens)
        assert given[0] is not None
        samples, width = given[0].shape
        return cls(samples, width, samples * width)

    @classmethod
    def around(cls, given: Padded | PackedInputs) -> Shape:
        """Room for a batch; of a packed one powers of two, since room costs it little, and few rooms serve all sizes."""
        samples, width, rows = cls.of(given)
        if isinstance(given, PackedInputs):
            return cls(_power_of_two(samples), _power_of_two(max(width, 32)), _power_of_two(max(rows, 256)))
        samples, width = room_for_samples(samples), room_for_columns(width)
        return cls(samples, width, samples * width)


def _ids_of(given: Sequence[Any] | PackedInputs) -> Any:
    """Ids of a batch, a tensor on the model's device once :func:`can_be_captured` has looked at it."""
    return given.words.values if isinstance(given, PackedInputs) else given[0]


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


class Rules(NamedTuple):
    """The part of a pyramid's settings that its graphs depend on."""

    prune_thresholds: tuple[float, ...] | None
    exit_layers: tuple[int, ...]
    uncertainty: Uncertainty

    @classmethod
    def of(cls, pyramid: Pyramid) -> Rules:
        thresholds = pyramid.pruning.thresholds
        exits = () if pyramid.exits is None else tuple(pyramid.exits.heads)
        return cls(None if thresholds is None else tuple(thresholds), exits, pyramid.uncertainty)

    @property
    def shrinks(self) -> bool:
        """Whether a batch may become smaller on its way up."""
        return self.prune_thresholds is not None or bool(self.exit_layers)


class Snapshot:
    """A model as it was, for telling whether it still is.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [
            (module, type(module), module.__dict__, tuple(module._modules.values())) for module in model.modules()
        ]
        self.parameters = [(x._parameters, tuple(x._parameters.values())) for x in model.modules() if x._parameters]
        there = [x for _, own in self.parameters for x in own if x is not None]
        self.places = [x.data_ptr() for x in there]
        self.memory = [x.untyped_storage() for x in there]  # as long as graphs may read it

    def holds(self) -> bool:
        """Whether nothing was replaced, moved or hooked, and nothing trains."""
        for module, kind, state, children in self.modules:
            if (
                type(module) is not kind
                or state["training"]
                or state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or "forward" in state
                or any(map(_is_not, state["_modules"].values(), children))
            ):
                return False
        if any(_is_not(x, y) for own, then in self.parameters for x, y in zip(own.values(), then, strict=False)):
            return False
        return self.places == [x.data_ptr() for _, own in self.parameters for x in own if x is not None]


def _is_not(x: object, y: object) -> bool:
    return x is not y


@dataclass
class Segment:
    """Layers that are replayed together: numbers ``first`` to ``last``; 0 is the embeddings."""

    first: int
    last: int


class Cuda:
    """A CUDA device, as far as graphs need it."""

    event = torch.cuda.Event
    pool = staticmethod(torch.cuda.graph_pool_handle)
    as_current = staticmethod(torch.cuda.device)

    @staticmethod
    def wait_for(event: Any) -> None:
        """Lets this stream wait for an event, which may be another stream's."""
        torch.cuda.current_stream().wait_event(event)

    @staticmethod
    def captured(work: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        """The graph of some work, which is not done now; pool: memory that it may use."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


DEVICES: dict[str, Any] = {"cuda": Cuda}  # that can replay graphs, by their types


class Room:
    """Buffers for batches of one shape, and the graphs that work in them.

    Args:
        model: the classifier.
        shape: the room.
        rules: the settings for which graphs are captured.
        segments: the layers of each graph.
        pool: memory that graphs share, since they never run side by side.
    """

    def __init__(self, model: Any, shape: Shape, rules: Rules, segments: Sequence[Segment], pool: Any) -> None:
        self.model, self.shape, self.rules, self.segments, self.pool = model, shape, rules, segments, pool
        device = model.device
        self.replays = DEVICES[device.type]
        samples = shape.samples
        rows = self.rows = shape.rows + 1

        def integers(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.count = integers(1)
        self.words, self.types, self.positions = integers(rows), integers(rows), integers(rows)
        self.starts = integers(samples + 1, dtype=torch.int32)
        self.given = torch.zeros(samples, max(1, len(rules.exit_layers)), device=device)  # exit thresholds
        states = torch.zeros((), dtype=model.backbone.dtype(model.base_model), device=device)
        # Written by the first segment and read by the others.
        self.held: list[Tensor] | None = None
        layers = model.config.num_hidden_layers
        self.board, self.memory = _in_one_piece(Board.empty(samples, model.num_labels, layers, states))
        # Rows left, samples left, and the first row with NaN importance or -1, after each segment; the facts come first.
        self.told = torch.zeros(len(segments) + 1, 16, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.done = self.replays.event()
        self.arrived = [self.replays.event() for _ in range(len(segments) + 1)]
        self.graphs: dict[tuple[int, int], Any] = {}
        self.front: Any = None
        self.size = 0  # samples of the batch
        self.last_padded: Shape | None = None  # the shape of what `padded` holds
        self.last_thresholds: tuple[float, ...] | None = None

    @functools.cached_property
    def padded(self) -> Tensor:
        """Ids, mask and token types of a padded batch, int64 ``[3, samples, width]``."""
        return torch.zeros(3, *self.shape[:2], dtype=torch.int64, device=self.model.device)

    @functools.cached_property
    def bounded(self) -> list[Bounded]:
        """The integers of a padded batch that must keep to a range."""
        first = self.model.backbone.first_position(self.model.config)
        ids, mask, types = self.padded
        return PaddedInputs(ids, mask, types, None, first).bounded(self.model.config)

    # ---- what the device does ----

    def _pack(self) -> None:
        """Takes the padding out, and tells the host what it must know."""
        ids, mask, types = self.padded
        starts, facts = mp_kernels.measure_padded(mask, [types, ids])
        self.told[0, : facts.shape[0]].copy_(facts, non_blocking=True)
        _, places, packed = mp_kernels.pack_padded(mask, starts, self.rows, [types, ids])
        self.starts.copy_(starts)
        there = torch.arange(self.rows, device=ids.device) < starts[-1]
        first = self.model.backbone.first_position(self.model.config)
        for own, x in ((self.types, packed[0]), (self.words, packed[1]), (self.positions, places + first)):
            own.copy_(torch.where(there, x, 0))
        self.board.wipe()

    def _enter(self, pyramid: Pyramid, rows: int) -> Held:
        """The samples as the first segment finds them, with room for so many rows."""
        thresholds, config = self.given if self.rules.exit_layers else None, self.model.config
        first = self.model.backbone.first_position(config)
        inputs = PackedInputs(
            Ragged(self.words[:rows], self.starts, self.shape.width),
            self.types[:rows],
            self.positions[:rows],
            min(first + self.shape.width, config.max_position_embeddings),  # the table may end before the room
        )
        return Held.of(pyramid, inputs, self.count, thresholds)

    def _found(self, rows: int) -> Held:
        """The samples as an earlier segment left them, with room for so many rows."""
        assert self.held is not None
        values, starts, samples, count, extents, *others = self.held
        positions = others.pop()[:rows] if self.placed else None
        batch = Ragged(values[:rows], starts, self.shape.width, positions=positions)
        return Held(batch, samples, count, extents, others[0] if others else None)

    @property
    def placed(self) -> bool:
        """Whether rows know their places."""
        return self.model.backbone.placed

    def _leave(self, held: Held) -> None:
        """Keeps the samples for the next segment."""
        parts = [held.batch.values, held.batch.cu_seqlens, held.samples, held.count, held.extents]
        parts += [x for x in (held.thresholds, held.batch.positions) if x is not None]
        if self.held is None:
            of_rows = held.batch.values, held.batch.positions
            self.held = [
                x.new_zeros(self.rows if any(x is y for y in of_rows) else x.shape[0], *x.shape[1:]) for x in parts
            ]
        for kept, x in zip(self.held, parts, strict=True):
            kept[: x.shape[0]].copy_(x)

    def _layers(self, pyramid: Pyramid, number: int, rows: int) -> Held:
        """A segment's layers."""
        segment = self.segments[number]
        held = self._found(rows) if number else self._enter(pyramid, rows)
        if segment.first == 0:
            held = run_bounded_embeddings(pyramid, held, self.board)
        for layer in range(max(1, segment.first), segment.last + 1):
            held = run_bounded_layer(pyramid, layer, held, self.board)
        return held

    def _segment(self, pyramid: Pyramid, number: int, rows: int) -> None:
        held = self._layers(pyramid, number, rows)
        if number + 1 < len(self.segments):
            self._leave(held)
        if self.rules.shrinks:
            told = torch.stack([held.batch.cu_seqlens[-1].long(), held.count[0], self.board.nan_rows.amax()])
            self.told[number + 1, :3].copy_(told, non_blocking=True)

    # ---- what the host does ----

    def graph(self, pyramid: Pyramid, number: int, rows: int) -> Any:
        """The graph of a segment with room for so many rows, captured when it is first needed."""
        graph = self.graphs.get((number, rows))
        if graph is None:
            held = self._layers(pyramid, number, rows)  # compiles what was never called, and writes nothing new
            if number + 1 < len(self.segments) and self.held is None:
                self._leave(held)
            graph = self.replays.captured(lambda: self._segment(pyramid, number, rows), self.pool)
            self.graphs[number, rows] = graph
        return graph

    def begin(self) -> None:
        """Lets this stream wait for the last run, which may have gone to another one."""
        self.replays.wait_for(self.done)

    def load(self, given: Padded | PackedInputs, thresholds: Tensor | Sequence[float]) -> int:
        """Puts a batch in its place; returns the number of rows.

        Raises:
            ValueError: a padded batch has a value outside its range, or a sample without a token.
        """
        size = Shape.of(given).samples
        if self.size != size:
            self.count.fill_(size)
            self.size = size
        self._load_thresholds(thresholds)
        return self._load_packed(given) if isinstance(given, PackedInputs) else self._load_padded(given)

    def _load_packed(self, inputs: PackedInputs) -> int:
        total, starts = inputs.tokens, inputs.words.cu_seqlens
        # What earlier batches left beyond are rows of nobody.
        for own, x in (
            (self.words, inputs.words.values),
            (self.types, inputs.token_types),
            (self.positions, inputs.positions),
            (self.starts, starts),
        ):
            own[: x.shape[0]].copy_(x)
        self.starts[starts.shape[0] :].fill_(total)
        self.board.wipe()
        return total

    def _load_padded(self, given: Padded) -> int:
        shape = Shape.of(given)
        if self.last_padded != shape:
            self.padded.zero_()
            # Samples that are not there are texts of one token, whose answers nobody writes down.
            self.padded[1, shape.samples :, 0] = 1
            self.last_padded = shape
        for own, x, otherwise in zip(self.padded, given, (0, 1, 0), strict=True):
            place = own[: shape.samples, : shape.width]
            if x is not None:
                place.copy_(x)
            else:
                place.fill_(otherwise)
        return self._pack_and_tell()

    def _load_thresholds(self, thresholds: Tensor | Sequence[float]) -> None:
        if isinstance(thresholds, Tensor):
            self.given[: self.size].copy_(thresholds)
            self.last_thresholds = None
        elif self.last_thresholds != tuple(thresholds) and thresholds:
            pinned = torch.tensor(thresholds, pin_memory=self.given.is_cuda)
            self.given.copy_(pinned.to(self.given.device, non_blocking=True).expand_as(self.given))
            self.last_thresholds = tuple(thresholds)

    def _pack_and_tell(self) -> int:
        if self.front is None:
            self._pack()
            self.front = self.replays.captured(self._pack, self.pool)
        self.front.replay()
        self.arrived[0].record()
        self.arrived[0].synchronize()
        facts = self.told[0, : 5 + 2 * 2].tolist()
        return understood(facts, self.bounded, self.starts, self.model.backbone.first_position(self.model.config)).total

    def start(self, pyramid: Pyramid, number: int, rows: int) -> None:
        """Starts a segment with room for so many rows."""
        self.graph(pyramid, number, room_for_rows(rows)).replay()
        if self.rules.shrinks:
            self.arrived[number + 1].record()

    def go_on(self, pyramid: Pyramid) -> int:
        """Starts the segments after the first, as long as anybody is left; returns the number of the last that ran.

        Raises:
            ValueError: importance is NaN.
        """
        for number in range(1, len(self.segments)):
            rows, samples = self._told(number)
            if samples == 0:
                return number - 1
            self.start(pyramid, number, rows)
        return len(self.segments) - 1

    def finish(self, last: int) -> None:
        """Waits for a segment whose importance may be NaN, of which only it can tell.

        Raises:
            ValueError: it is.
        """
        if self.rules.prune_thresholds is not None:
            self._told(last + 1)

    def _told(self, place: int) -> tuple[int, int]:
        """Rows and samples left, as the device says."""
        self.arrived[place].synchronize()
        rows, samples, nan_row = self.told[place, :3].tolist()
        if nan_row >= 0:
            raise reference.nan_importance_error(nan_row)
        return rows, samples

    def answers(self, pyramid: Pyramid) -> BatchRun:
        """Copies of the answers for the batch."""
        count = self.size
        board = _views(self.memory.clone(), self.board)
        self.done.record()
        return BatchRun(
            board.logits[:count],
            board.uncertainty[:count],
            board.exit_layer[:count],
            LazySteps(lambda: board.steps(pyramid, count)),
            lengths=board.tokens[0, 0, :count],
        )


class LazySteps(Sequence):  # type: ignore[type-arg]
    """Steps that are found when somebody asks for one."""

    def __init__(self, find: Callable[[], list[Any]]) -> None:
        self.find = find
        self.found: list[Any] | None = None

    def _all(self) -> list[Any]:
        if self.found is None:
            self.found = self.find()
        return self.found

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, place: Any) -> Any:
        return self._all()[place]


def _in_one_piece(board: Board) -> tuple[Board, Tensor]:
    """The same board in one piece of memory, bytes ``[n]``, which takes one copy."""
    size = sum(-(-part.nbytes // 16) * 16 for part in board.parts)
    memory = torch.zeros(size, dtype=torch.uint8, device=board.logits.device)
    return _views(memory, board), memory


def _views(memory: Tensor, like: Board) -> Board:
    """A board in a piece of memory, with the shapes and dtypes of another one."""
    parts, begin = [], 0
    for part in like.parts:
        parts.append(memory[begin : begin + part.nbytes].view(part.dtype).view(part.shape))
        begin += -(-part.nbytes // 16) * 16
    return Board(*parts)


class Graphs:
    """The graphs of a classifier.

    Args:
        model: the classifier, all of whose layers apply in prepared form.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rooms: OrderedDict[tuple[Shape, Rules], Room] = OrderedDict()
        self.snapshot: Snapshot | None = None
        self.pool: Any = None
        self.lock = threading.Lock()

    def segments(self, rules: Rules, rows: int) -> list[Segment]:
        """The layers, cut into segments for a batch that comes with so many rows.

        Where a batch may shrink, the first segment has two layers. In small batches each has twice as many as the one
        before: between two the device waits for the host, and the fewer rows are left, the less it helps to know that.
        """
        last = self.model.config.num_hidden_layers
        length = FIRST_LAYERS if rules.shrinks else last
        found, first, end = [], 0, length
        while first <= last:
            found.append(Segment(first, min(end, last)))
            if rows < ROOMY:
                length *= 2
            first, end = end + 1, end + length
        return found

    def run(
        self,
        pyramid: Pyramid,
        given: Padded | PackedInputs,
        thresholds: Tensor | Sequence[float],
    ) -> BatchRun | None:
        """Classifies a batch; None: the model is no longer the one that was captured, and must be called anew.

        Args:
            pyramid: the model's.
            given: the batch, padded or packed.
            thresholds: exit thresholds, one an exit layer, or ``[batch, exit layers]``.
        """
        device = _ids_of(given).device
        with self.lock, DEVICES[device.type].as_current(device):
            # Tensors that are made in inference mode can be written in no other.
            with torch.inference_mode():
                room = self._room(pyramid, given)
                if room is None:
                    return None
                room.begin()
                room.start(pyramid, 0, room.load(given, thresholds))
                if self.snapshot is None or not self.snapshot.holds():  # seen while the device works
                    self._forget()
                    return None  # the graphs read weights that are no longer the model's
                last = room.go_on(pyramid)
            run = room.answers(pyramid)
            room.finish(last)
            return run

    def _room(self, pyramid: Pyramid, given: Padded | PackedInputs) -> Room | None:
        """The buffers and graphs for a batch; None: the model cannot be captured."""
        key = Shape.around(given), Rules.of(pyramid)
        room = self.rooms.get(key)
        if room is None:
            if self.snapshot is None or not self.snapshot.holds():
                self._forget()
                if self._why_not(pyramid):
                    return None
                self.snapshot = Snapshot(self.model)
            room = self.rooms[key] = Room(self.model, *key, self.segments(key[1], key[0].rows), self.pool)
            while len(self.rooms) > MOST_ROOMS:
                self.rooms.popitem(last=False)
        self.rooms.move_to_end(key)
        return room

    def _forget(self) -> None:
        """Forgets all graphs."""
        self.rooms.clear()
        self.snapshot = None
        self.pool = DEVICES[self.model.device.type].pool()

    def _why_not(self, pyramid: Pyramid) -> str | None:
        """The reason why the model cannot be captured; None: it can."""
        device = self.model.device
        for layer in pyramid.layers:
            # This packs the weights, once, so that they move before they are captured.
            layer.block(device)  # type: ignore[operator]
            why = layer.why_modules(device)  # type: ignore[operator]
            if why is not None:
                return why
        return self.model.backbone.why_embedding_modules(self.model.base_model, device)


def can_be_captured(model: Any, pyramid: Pyramid, given: Sequence[Any] | PackedInputs) -> bool:
    """Whether a call may go through graphs: plain ids on a device, and rules that need no counting by the host.

    given: a packed batch; or a padded one's ids, mask and token types, of which whatever is odd is left to others to refuse.
    """
    ids = _ids_of(given)
    if not isinstance(ids, Tensor) or ids.device.type not in DEVICES or ids.device != model.device:
        return False
    if not isinstance(given, PackedInputs) and not _is_plain(given, ids):
        return False
    _, width, rows = Shape.of(given)
    if not 0 < rows <= MOST_ROWS or width > model.config.max_position_embeddings:
        return False
    if model.config.precision == "int8":  # whose steps, on devices without kernels for them, are read by the host
        return False
    if why_modules_now(ids.device) or (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return can_be_bounded(pyramid) and all(hasattr(layer, "why_modules") for layer in pyramid.layers)


def _is_plain(given: Sequence[Any], ids: Tensor) -> bool:
    """Whether these are integers ``[batch, width]`` on one device."""
    return ids.dim() == 2 and all(
        x is None
        or (isinstance(x, Tensor) and x.shape == ids.shape and x.device == ids.device and not x.is_floating_point())
        for x in given
    )


def steps_by_graphs(model: Any, pyramid: Pyramid, arrived: Arrived) -> list[StepResult] | None:
    """Everything that happens to a batch by graphs of its device, layer by layer; None: it must go through a schedule.

    The predictions at a layer are those of the samples that leave there; for the others their later ones stand in.

    Args:
        model: the classifier.
        pyramid: the model's, with a call's settings.
        arrived: the batch.
    """
    run = model.run_captured(arrived.inputs, pyramid, arrived.thresholds)
    if run is None:
        return None
    results = []
    for step in run.steps:
        here = step.samples
        numbers, stays = arrived.samples[here], run.exit_layer[here] != step.layer
        decided = Decided(step.layer, numbers, run.logits[here], run.uncertainty[here], stays)
        results.append(StepResult(decided, replace(step, samples=numbers)))
    return results
