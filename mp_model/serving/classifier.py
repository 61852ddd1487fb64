"""The loaded classifier: texts in, answers out, in input order.

All texts go through one :class:`mp_model.schedule.Schedule`, so that those which stay longer share the upper layers.
"""

from __future__ import annotations

import math
import reprlib
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import graphs
from ..checkpoints.configurations import read_config
from ..checkpoints.precisions import Precision, choose_precision, precision_of
from ..checkpoints.reading import read_in_precision
from ..checkpoints.saving import save_for_inference
from ..checkpoints.tokenizers import load_tokenizer, max_length_of
from ..checkpoints.tuned_for import warn_where_it_no_longer_holds
from ..configuration import PyramidConfig
from ..data.batches import Text
from ..data.files import check_folder
from ..data.tokens import Tokeniser, Tokens
from ..data.windows import Window, Windows, tokens_of, with_windows
from ..engine import Arrived, Pyramid, StepResult
from ..exits import DISAGREEMENT
from ..inputs import ONE_TEXT, pack_tokens
from ..modelling import thresholds_of_samples
from ..registration import PyramidForSequenceClassification
from ..schedule import BUDGET, Schedule
from .cache import Cache
from .read_ahead import ReadAhead

CHUNK = 256  # texts that are read and tokenised at once
DEVICE_BUDGET = 16_384  # tokens at which a GPU runs a layer
LULL = 0.02  # seconds without a new text after which those at hand are answered
LONG_TEXTS = ("cut", "windows")  # what becomes of texts of more tokens than the model takes

ExitThreshold = float | str | Sequence[float] | Tensor | None


@dataclass(slots=True)
class Answer:
    """One text's answer.

    Attributes:
        label: name of the label with the highest score.
        score: its probability; of a model for regression the value itself.
        scores: probability, or value, of each label, by name. Probabilities sum to 1 where one label is chosen for a text;
            where a text may have several, each is a label's own.
        exit_layer: layer that answered, 0 to L; of a text that was read in windows, the layer that answered the last one.
        uncertainty: of the answer, 0 to 1, as the model's ``exit_uncertainty`` says: the probability that layer L would
            answer otherwise; or its normalised entropy where one label is chosen, that of the least certain label
            where a text may have several; None for values.
        tokens: tokens that were read, of a text that was cut or of all its windows.
        flops: executed work, 2 x multiply-accumulates.
    """

    label: str
    score: float
    scores: dict[str, float]
    exit_layer: int
    uncertainty: float | None
    tokens: int
    flops: int

    def as_dict(self, all_scores: bool = True) -> dict[str, Any]:
        """The attributes, for JSON; with or without :attr:`scores`."""
        names = [field.name for field in fields(self) if all_scores or field.name != "scores"]
        return {name: getattr(self, name) for name in names}


class Classifier:
    """A model and its tokenizer, ready to answer texts.

    Args:
        model: the classifier; it is put into eval mode.
        tokenizer: the tokenizer that it was trained with.
        cache: answers that are kept, the last ones, for texts that come again with the same thresholds; 0: none. Whoever
            changes the model's weights empties it with ``classifier.cache.clear()``.
        long_texts: what becomes of a text of more tokens than the model takes. ``"cut"``: its beginning is read (or its end,
            if the tokenizer cuts there). ``"windows"``: it is read from its beginning in windows that overlap by a quarter,
            until it is certain; its logits are the mean of its windows'. It is certain where their uncertainty is at most
            the exit threshold of the layer that answered the last window (the highest exit's threshold for layer L), so
            where exits are closed all windows are read.

    Attributes:
        precision: the precision of its products, and the reason for it.
        cache: the answers that are kept; None: none are.
        longer: number of texts so far that had more tokens than the model takes, without those answered by the cache.
    """

    def __init__(
        self,
        model: PyramidForSequenceClassification,
        tokenizer: Any,
        cache: int = 0,
        long_texts: str = "cut",
    ) -> None:
        if cache < 0:
            raise ValueError(f"cache must be a number of answers, 0 or more; got {cache}")
        check_long_texts(long_texts)
        if long_texts == "windows":
            check_windows(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.precision = Precision(precision_of(model), "the model is")
        self.tokenise = Tokeniser(tokenizer, max_length_of(tokenizer, model.config))
        self.windows = Windows(tokenizer, self.tokenise.max_length) if long_texts == "windows" else None
        self.cache: Cache[Answer] | None = Cache(cache) if cache else None
        self.longer = 0

    @property
    def reads_pairs(self) -> bool:
        """Whether it takes nothing but pairs of texts, which its exits compare."""
        return self.model.config.reads_pairs

    @classmethod
    def load(
        cls,
        folder: str | Path,
        precision: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        cache: int = 0,
        long_texts: str = "cut",
        every_layer: bool = False,
    ) -> Classifier:
        """Loads a folder that ``magic-pyramid fit`` or ``save_pretrained`` wrote, in the precision that is asked for.

        A folder without trained exits answers as long as they stay closed.

        Args:
            folder: folder of a saved model and its tokenizer.
            precision: ``"float32"``, ``"bfloat16"``, ``"int8"``, or ``"auto"``: the one that the folder was saved in
                (:meth:`save`) or tuned for, where this processor computes it fast, else float32.
            device: device of the model.
            threads: threads of PyTorch, for the whole process; None: as they are.
            cache: answers that are kept for texts that come again.
            long_texts: ``"cut"`` or ``"windows"``, see :class:`Classifier`.
            every_layer: whether to load the layers that no text reaches (``config.depth``) too.

        Raises:
            ValueError: a folder that is no whole classifier with its tokenizer (:func:`read_classifier`,
                :func:`load_tokenizer`); a precision or a device that cannot be had here.
        """
        check_long_texts(long_texts)
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"a saved model is a folder with config.json; got {folder}")
        check_device(device)
        chosen = choose_precision(precision, read_config(folder), device)
        if threads:
            torch.set_num_threads(threads)
        model = read_in_precision(folder, chosen.name, reached_only=not every_layer)
        model.to(torch.device(device))  # type: ignore[arg-type]  # transformers' decorator hides self
        classifier = cls(model, load_tokenizer(folder), cache, long_texts)
        classifier.precision = chosen
        warn_where_it_no_longer_holds(classifier.model, classifier.tokenise.max_length)
        return classifier

    def save(self, folder: str | Path) -> None:
        """Writes the model, in the precision that it has, and its tokenizer into a new folder.

        Whoever loads the folder gets the same answers, bit by bit, and never holds the weights of layers in another
        precision. Those of ``"bfloat16"`` and ``"int8"`` are for inference alone: no fit goes on from them.

        Args:
            folder: a folder that is empty, or yet to be made.

        Raises:
            ValueError: the folder is not empty; a model in float16 or another dtype that is no precision.
            OSError: it cannot be written.
        """
        check_folder(Path(folder))
        save_for_inference(self.model, Path(folder), self.tokenizer)

    def pyramid(self, exit_threshold: float | str | Sequence[float] | None) -> Pyramid:
        """The model with a call's exit threshold.

        Raises:
            ValueError, TypeError: a threshold that cannot be followed, or that opens exits which nobody has trained.
        """
        self.model.config.check_exits(exit_threshold)
        return self.model.pyramid(exit_threshold=exit_threshold)

    def __call__(self, texts: Sequence[Text], exit_threshold: ExitThreshold = None) -> list[Answer]:
        """The answers of texts, or pairs of texts, in their order.

        Args:
            texts: strings, or pairs of strings.
            exit_threshold: instead of the model's own: a float, a list with one float an exit layer, ``"never"``, or a
                tensor with one value for each text.

        Raises:
            TypeError: a single string; an item that is no text.
            ValueError: a text that is no Unicode; singles and pairs in one call; a single text where exits compare two; an
                answer that is no number.
            ValueError, TypeError: an exit threshold that cannot be followed, or that opens untrained exits.
        """
        if isinstance(texts, str | Mapping | Set):
            kind = type(texts).__name__
            way_out = "put it into a list" if isinstance(texts, str) else "its order is nobody's; give a list"
            raise TypeError(f"texts must be a list of texts; got a single {kind}, {way_out}")
        texts = list(checked(texts, self.reads_pairs))
        own = exit_threshold if isinstance(exit_threshold, Tensor) else None
        if own is not None and own.shape != (len(texts),):
            raise ValueError(f"a tensor exit_threshold has one entry per text, [{len(texts)}]; got {list(own.shape)}")
        if len(texts) > CHUNK:
            chunks = [slice(begin, begin + CHUNK) for begin in range(0, len(texts), CHUNK)]
            pieces = ((texts[chunk], None if own is None else own[chunk]) for chunk in chunks)
            return list(self._stream(pieces, room=len(texts), size=CHUNK, exit_threshold=exit_threshold))
        run = _Run(self, exit_threshold, capacity=max(1, len(texts)))
        if texts:
            run.admit(run.prepared(texts, own))
            run.finish()
        return list(run.ready())

    def stream(
        self, texts: Iterable[Text], window: int = 1024, exit_threshold: float | str | Sequence[float] | None = None
    ) -> Iterator[Answer]:
        """Answers in the order of the texts, which may be endless.

        Reading and tokenising go on in a thread beside the model. When no text comes for a while, those at hand are
        answered.

        Args:
            texts: strings, or pairs of strings.
            window: texts that are held at a time, from being read to being answered; more make fuller batches.
            exit_threshold: as for a call; no tensor, since nobody knows how many texts are coming.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1; got {window}")
        if isinstance(exit_threshold, Tensor):
            raise TypeError("exit_threshold of a stream is a number, a list with one for each exit layer, or 'never'")
        self.pyramid(exit_threshold)  # refuses what cannot be followed before anything is read
        # One piece is read and a text more, one is tokenised, one waits and one comes in: their texts are held too.
        size = max(1, min(CHUNK, window // 8))
        return self._from_source(texts, max(1, window - 4 * size - 1), size, exit_threshold)

    def _from_source(
        self, texts: Iterable[Text], room: int, size: int, exit_threshold: float | str | Sequence[float] | None
    ) -> Iterator[Answer]:
        source = ReadAhead(checked(texts, self.reads_pairs), ahead=size)
        try:
            pieces = ((piece, None) for piece in source.pieces(size))
            yield from self._stream(pieces, room, size, exit_threshold)
        finally:
            source.close()

    def _stream(
        self,
        pieces: Iterable[tuple[Sequence[Text], Tensor | None]],
        room: int,
        size: int,
        exit_threshold: ExitThreshold,
    ) -> Iterator[Answer]:
        """Answers in order.

        Args:
            pieces: texts, with exit thresholds of their own.
            room: texts that may be held when the next piece comes in.
            size: most texts of a piece.
            exit_threshold: as for a call.
        """
        run = _Run(self, exit_threshold, capacity=room + size)
        ahead = ReadAhead(run.prepared(texts, own) for texts, own in pieces)
        patience = LULL
        broken: Exception | None = None
        try:
            while True:
                try:
                    found = ahead.take(timeout=patience if run.held else None)
                except Exception as error:
                    broken = error  # raised once the texts before it are answered
                    break
                if found is None:  # nothing is coming just now: go on without waiting for it again
                    patience = 0.0
                    run.step()
                elif found:
                    patience = LULL
                    run.admit(found[0])
                else:
                    break
                while run.held > room:
                    yield from run.ready()
                    if run.held > room:
                        run.step()
                yield from run.ready()
            run.finish()
            yield from run.ready()
            if broken is not None:
                raise broken
        finally:
            ahead.close()


@dataclass
class _Piece:
    """Texts that come in together.

    Attributes:
        count: number of texts.
        known: answers that were kept, by the text's place.
        places: places of the other texts; int64 ``[others]``.
        tokens: their tokens; None where there are none.
        thresholds: exit thresholds of their own, ``[others]``; None: they have none.
        keys: their keys in the cache, where there is one.
        long: those that are read in windows, by their places among the others.
    """

    count: int
    known: dict[int, Answer]
    places: Tensor
    tokens: Tokens | None
    thresholds: Tensor | None
    keys: list[Hashable]
    long: dict[int, LongText]


@dataclass
class LongText:
    """A text that is read window by window.

    Attributes:
        windows: the windows that are still to be read.
        typed: whether its tokens have types, as those of pairs have.
        threshold: its own exit threshold; None: it has none.
        logits: sum of the logits of the windows that are answered, ``[labels]``.
        answered: number of these.
    """

    windows: Iterator[Window]
    typed: bool
    threshold: float | None = None
    logits: Tensor | float = 0.0
    answered: int = 0

    def mean_with(self, logits: Tensor) -> Tensor:
        """The mean logits of all windows so far, ``[labels]``; logits: those of one more window."""
        self.logits, self.answered = self.logits + logits, self.answered + 1
        return self.logits / self.answered


class _Run:
    """One call's or stream's texts on their way.

    Args:
        classifier: the classifier.
        exit_threshold: for all texts; a tensor stands for thresholds that come with the texts.
        capacity: most texts that are held at a time.
    """

    def __init__(self, classifier: Classifier, exit_threshold: ExitThreshold, capacity: int) -> None:
        self.classifier = classifier
        self.model, self.tokenise, self.cache = classifier.model, classifier.tokenise, classifier.cache
        for_all = 1.0 if isinstance(exit_threshold, Tensor) else exit_threshold
        self.pyramid = classifier.pyramid(for_all)
        on_device = self.model.device.type in graphs.DEVICES
        self.schedule = Schedule(self.pyramid, DEVICE_BUDGET if on_device else BUDGET)
        self.by_graphs: deque[StepResult] = deque()  # that happened and were not looked at yet
        self.names, self.problem = self.model.config.label_names, self.model.config.problem
        # Texts are numbered as they come; these have a place for each that is held, by number modulo capacity.
        self.work = torch.zeros(capacity, dtype=torch.int64, device=self.model.device)
        self.lengths = [0] * capacity
        self.keys: list[Hashable] = [None] * capacity
        config = self.model.config
        pruning = str((config.resolved_thresholds(), config.resolved_top_k(), config.importance_normalizer))
        self.settings = pruning, str(None if self.pyramid.exits is None else self.pyramid.exits.thresholds)
        self.long: dict[int, LongText] = {}
        self.answers: dict[int, Answer | None] = {}  # None: the model's numbers are none
        self.came = self.went = 0

    @property
    def held(self) -> int:
        """Number of texts that were let in and not yet handed out."""
        return self.came - self.went

    def prepared(self, texts: Sequence[Text], thresholds: Tensor | None) -> _Piece:
        """Texts, tokenised unless their answers were kept; does not touch the model."""
        if self.cache is None:
            tokens, long = self._tokenised(texts, thresholds)
            return _Piece(len(texts), {}, torch.arange(len(texts)), tokens, thresholds, [], long)
        own = [None] * len(texts) if thresholds is None else thresholds.tolist()
        keys: list[Hashable] = [(text, self.settings, value) for text, value in zip(texts, own, strict=True)]
        kept = {place: self.cache.get(key) for place, key in enumerate(keys)}
        known = {place: answer for place, answer in kept.items() if answer is not None}
        others = [place for place in range(len(texts)) if place not in known]
        places = torch.tensor(others, dtype=torch.int64)
        if not others:
            return _Piece(len(texts), known, places, None, None, [], {})
        thresholds = None if thresholds is None else thresholds[places]
        tokens, long = self._tokenised([texts[place] for place in others], thresholds)
        return _Piece(len(texts), known, places, tokens, thresholds, [keys[place] for place in others], long)

    def _tokenised(self, texts: Sequence[Text], thresholds: Tensor | None) -> tuple[Tokens, dict[int, LongText]]:
        """The texts' tokens, and those that are read in windows, by place, of which the first one is there."""
        tokens, windows = self.tokenise(texts), self.classifier.windows
        longer = [] if tokens.cut is None else np.flatnonzero(tokens.cut).tolist()
        self.classifier.longer += len(longer)
        if windows is None or not longer:
            return tokens, {}
        long = {
            place: LongText(
                windows.of(texts[place]),
                tokens.types is not None,
                None if thresholds is None else float(thresholds[place]),
            )
            for place in longer
        }
        return with_windows(tokens, {place: next(text.windows) for place, text in long.items()}), long

    @torch.inference_mode()
    def admit(self, piece: _Piece) -> None:
        """Lets texts in, and runs what is due."""
        first = self.came
        self.came += piece.count
        self.answers.update((first + place, answer) for place, answer in piece.known.items())
        if piece.tokens is None:
            return
        numbers = first + piece.places
        for number, key in zip(numbers.tolist(), piece.keys, strict=False):  # without a cache there are no keys
            self.keys[number % len(self.keys)] = key
        for number in numbers.tolist():
            self.lengths[number % len(self.lengths)] = 0
        self.work.index_fill_(0, (numbers % len(self.lengths)).to(self.work.device), 0)
        self.long.update((int(numbers[place]), text) for place, text in piece.long.items())
        for part in piece.tokens.slices(self.schedule.budget):
            thresholds = None if piece.thresholds is None else piece.thresholds[part]
            self._admit(piece.tokens[part], numbers[part], thresholds)
            while (result := self._next(more_is_coming=True)) is not None:
                self._take(result)

    def _admit(self, tokens: Tokens, numbers: Tensor, thresholds: Tensor | None) -> None:
        capacity, device = self.work.shape[0], self.model.device
        inputs = pack_tokens(self.model.config, tokens.ids, tokens.types, tokens.lengths, device)
        own = None
        if thresholds is not None:
            layers = 0 if self.pyramid.exits is None else len(self.pyramid.exits.heads)
            own = thresholds_of_samples(thresholds, len(tokens), layers).to(device)
        for number, length in zip(numbers.tolist(), tokens.lengths.tolist(), strict=True):
            self.lengths[number % capacity] += length
        arrived = Arrived(inputs, numbers.to(device), own)
        results = graphs.steps_by_graphs(self.model, self.pyramid, arrived)
        if results is None:
            self.schedule.admit(arrived)
        else:
            self.by_graphs.extend(results)

    def _next(self, more_is_coming: bool) -> StepResult | None:
        """What happens next; None: the next texts are due, or all have left."""
        if self.by_graphs:
            return self.by_graphs.popleft()
        number = self.schedule.next_layer(more_is_coming)
        return None if number is None else self.schedule.run(number)

    @torch.inference_mode()
    def step(self) -> None:
        """Runs one layer, though more texts may come: somebody has waited long enough."""
        result = self._next(more_is_coming=False)
        if result is not None:
            self._take(result)

    @torch.inference_mode()
    def finish(self) -> None:
        """Answers all texts that were let in."""
        while (result := self._next(more_is_coming=False)) is not None:
            self._take(result)

    def ready(self) -> Iterator[Answer]:
        """The next answers in order, as far as they are there."""
        while self.went in self.answers:
            answer = self.answers.pop(self.went)
            if answer is None:
                raise ValueError(
                    f"the model's answer to texts[{self.went}] is NaN or infinite; its weights do not suit "
                    f"{str(self.model.dtype).removeprefix('torch.')}, or are damaged: load it in float32, or train it again"
                )
            self.went += 1
            yield answer

    def _take(self, result: StepResult) -> None:
        """Counts a step's work, and keeps the answers of the texts that left."""
        capacity, step, decided = self.work.shape[0], result.step, result.decided
        if step.layer or step.decided:
            self.work.index_add_(0, step.samples % capacity, step.flops(self.model.config))
        if decided is None:
            return
        samples, logits, uncertainty = decided.samples, decided.logits, decided.uncertainty
        if decided.stays is not None:
            leaves = (~decided.stays).nonzero().squeeze(1)
            samples, logits, uncertainty = samples[leaves], logits[leaves], uncertainty[leaves]
        if samples.shape[0] == 0:
            return
        if self.long:
            samples, logits, uncertainty = self._of_whole_texts(decided.layer, samples, logits, uncertainty)
        scores = self.problem.scores(logits.float())
        columns = (samples, scores.argmax(-1), scores, uncertainty, self.work[samples % capacity])
        names = self.names
        for number, best, row, u, flops in zip(*(column.tolist() for column in columns), strict=True):
            if not all(map(math.isfinite, row)):
                self.answers[number] = None
                continue
            answer = Answer(
                label=names[best],
                score=row[best],
                scores=dict(zip(names, row, strict=True)),
                exit_layer=decided.layer,
                uncertainty=u if self.problem.has_uncertainty(len(names)) else None,
                tokens=self.lengths[number % capacity],
                flops=flops,
            )
            self.answers[number] = answer
            if self.cache is not None:
                self.cache.put(self.keys[number % capacity], answer)

    def _of_whole_texts(
        self, layer: int, samples: Tensor, logits: Tensor, uncertainty: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for texts that need no further window; the next windows of the others are let in.

        Args:
            layer: layer that answered.
            samples: numbers of the texts, int64 ``[answered]``.
            logits, uncertainty: answers to single windows where texts have them, ``[answered, labels]`` and ``[answered]``.
        """
        numbers = samples.tolist()
        rows = [row for row, number in enumerate(numbers) if number in self.long]
        if not rows:
            return samples, logits, uncertainty
        means = torch.stack([self.long[numbers[row]].mean_with(logits[row].float()) for row in rows])
        unsure = self.problem.uncertainty(means)
        logits, uncertainty = logits.float(), uncertainty.clone()
        logits[rows], uncertainty[rows] = means, unsure
        going: dict[int, Window] = {}
        for row, u in zip(rows, unsure.tolist(), strict=True):
            text = self.long[numbers[row]]
            window = None if u <= self._certain_at(layer, text) else next(text.windows, None)
            if window is None:
                del self.long[numbers[row]]
            else:
                going[row] = window
        if going:
            self._go_on({numbers[row]: window for row, window in going.items()})
        done = [row for row in range(len(numbers)) if row not in going]
        return samples[done], logits[done], uncertainty[done]

    def _certain_at(self, layer: int, text: LongText) -> float:
        """The uncertainty at which a text whose last window was answered by a layer needs no further one."""
        by_layer = {} if self.pyramid.exits is None else self.pyramid.exits.thresholds
        if not by_layer:
            return -1.0
        return by_layer.get(layer, by_layer[max(by_layer)]) if text.threshold is None else text.threshold

    def _go_on(self, windows: dict[int, Window]) -> None:
        """Lets the next windows of texts in, by the texts' numbers."""
        texts = [self.long[number] for number in windows]
        own = [text.threshold for text in texts if text.threshold is not None]
        tokens = tokens_of(list(windows.values()), typed=texts[0].typed)
        self._admit(tokens, torch.tensor(list(windows)), torch.tensor(own) if own else None)


def check_windows(config: PyramidConfig) -> None:
    """Raises ValueError for a model whose texts cannot be read in windows until they are certain."""
    if config.exit_uncertainty == DISAGREEMENT:
        raise ValueError(
            "a text in windows is certain by the entropy of their mean, and this model's texts leave by disagreement; cut "
            "long texts, or choose its threshold anew: magic-pyramid tune --uncertainty entropy"
        )


def check_long_texts(way: str) -> None:
    """Raises ValueError for anything but one of ``LONG_TEXTS``."""
    if way not in LONG_TEXTS:
        raise ValueError(f"long_texts must be one of {', '.join(map(repr, LONG_TEXTS))}; got {way!r}")


def checked(texts: Iterable[Any], only_pairs: bool = False) -> Iterator[Text]:
    """The texts, as long as each is a str, or each a pair of them, that a tokenizer can take.

    Raises:
        TypeError: an item that is neither.
        ValueError: a lone surrogate, which is half a character; singles and pairs together; a single one where only pairs
            are taken.
    """
    pairs: bool | None = None
    for number, text in enumerate(texts):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError(f"texts[{number}] must be a str or a pair of them, (str, str); got {reprlib.repr(text)}")
        try:
            for part in parts:
                part.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"texts[{number}] holds {error.object[error.start]!r}, a lone surrogate, which is half a character; read "
                "the text anew with its right encoding, or replace it"
            ) from error
        if pairs is not None and pairs != isinstance(text, tuple):
            raise ValueError(
                f"texts must be all single or all pairs; got both: texts[{number}] is not like those before"
            )
        pairs = isinstance(text, tuple)
        if only_pairs and not pairs:
            raise ValueError(f"texts[{number}] is a single text: {ONE_TEXT}")
        yield text


def check_device(device: str) -> None:
    """Raises ValueError for a device that PyTorch does not know, or that is not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *([str(torch.accelerator.current_accelerator())] if torch.accelerator.is_available() else [])]
        raise ValueError(f"device {device!r} cannot be used here: PyTorch finds {' and '.join(there)}") from error
