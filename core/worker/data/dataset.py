"""Tokenized rows from data files, with every row accounted for."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.analysis.division import HELD_OUT as HELD_OUT
from core.analysis.division import NOT_SAMPLED as NOT_SAMPLED
from core.analysis.division import Fingerprints, divide_rows
from core.analysis.preflight import Preflight
from core.analysis.problems import FileLine, kind_of, name_places
from core.chat.corrections import OTHERS, REPEATS, read_corrections
from core.config.schema import Config
from core.data.conversation import IGNORED_LABEL, Example, Message, RowError
from core.data.exclusion import EXCLUDED, Exclusion, row_line
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE, Detection, UnreadColumns, count_names, find_ambiguity, refuse_untrainable
from core.data.registries.resolve import flat_sources, training_sources
from core.data.registries.source import DataSource
from core.errors import UserError
from core.runs.record.events import DataEvent
from core.template.mask import TEMPLATE_CODES
from core.text import one_line
from core.worker.data.batches import row_bytes, supervised_count
from core.worker.data.encode import Encoder, TokenizedRow

#: Rows tokenized in one call.
CHUNK_ROWS = 256

NOTHING_SUPERVISED, NO_STOP_TOKEN = "nothing_supervised", "no_stop_token"


@dataclass(frozen=True)
class TrainedExample:
    """A row of the data files with its tokenized rows, each once."""

    place: FileLine
    example: Example
    rows: tuple[TokenizedRow, ...]

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return max(map(len, self.rows))


@dataclass
class Dataset:
    """Usable rows of some files. ``rows``, ``examples`` and ``places`` are parallel lists.

    Rows that ``data.exclude`` leaves out are among them, as gaps in the order.
    """

    rows: list[TokenizedRow] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    places: list[FileLine] = field(default_factory=list)
    """Source of each row; empty if unknown."""
    excluded: frozenset[int] = frozenset()
    """Positions in ``rows`` of those left out of training."""
    read: int = 0
    repeated: int = 0
    """Number of ``rows`` that are repetitions for ``data.weights``."""
    further: int = 0
    """Number of ``rows`` that are additional rows of an example, for turns whose context its first row does not show as
    inference does."""
    marked: int = 0
    """Number of rows read whose answers had an end mark at their end, which is left out."""
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    """Message about the first row dropped, by reason."""
    formats: dict[str, str] = field(default_factory=dict)
    """Format and its reason, by configuration entry."""
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    """Columns with values that are not read, by configuration entry, with the number of rows of each."""

    @property
    def lengths(self) -> list[int]:
        """Length in tokens of each row; of a pair, that of the longer sequence."""
        return [row.longest for row in self.rows]

    def place(self, position: int) -> str:
        """File and line of one of ``rows``: ``rows.jsonl line 7``."""
        return name_places(self.places[position : position + 1]) if self.places else f"row {position + 1}"

    def name_of(self, position: int) -> str:
        """The name of one of ``rows``, its file and line: ``rows.jsonl:7``; its number without them."""
        return f"{(place := self.places[position]).file}:{place.line}" if self.places else str(position + 1)

    def event(self, held_out: Dataset | None = None) -> DataEvent:
        """The ``data`` event about these rows. Tokens are per epoch, including repeated rows, without rows left out.

        Args:
            held_out: The held-out rows; None if there are none.
        """
        measured = held_out.rows if held_out is not None else []
        trained = [row for _, row in self.trained()]
        return DataEvent(
            rows=self.read,
            used=len(self.rows) - self.repeated - self.further - self.dropped[EXCLUDED],
            dropped=dict(sorted(self.dropped.items())),
            tokens=sum(row.tokens for row in trained),
            supervised_tokens=sum(supervised_count(row) for row in trained),
            longest=max((row.longest for row in trained), default=0),
            held_out_rows=len(measured),
            held_out_tokens=sum(row.tokens for row in measured),
        )

    def trained(self) -> Iterator[tuple[int, TokenizedRow]]:
        """The rows that are not left out, with their positions."""
        return ((at, row) for at, row in enumerate(self.rows) if at not in self.excluded)

    def trained_examples(self) -> list[TrainedExample]:
        """The examples behind the trained rows, in their order: repetitions for ``data.weights`` and further rows of a
        conversation belong to one of them, and rows that ``data.exclude`` leaves out are not among them."""
        grouped: dict[int, list[int]] = {}
        for at, _ in self.trained():
            grouped.setdefault(id(self.examples[at]), []).append(at)
        return [
            TrainedExample(
                self.places[positions[0]],
                self.examples[positions[0]],
                # By their content: of a repeated conversation, unfolding makes the first row anew each time.
                tuple({row_bytes(self.rows[at]): self.rows[at] for at in positions}.values()),
            )
            for positions in grouped.values()
        ]

    def unfold(self) -> None:
        """Insert the additional rows of each example after its first."""
        chosen = [place for place, first in enumerate(self.rows) for _ in first.rows]
        unfolded = [row for first in self.rows for row in first.rows]
        self.further += len(unfolded) - len(self.rows)
        _, self.examples, self.places, self.excluded = self.taken(chosen)
        self.rows = unfolded

    def taken(
        self, positions: Sequence[int]
    ) -> tuple[list[TokenizedRow], list[Example], list[FileLine], frozenset[int]]:
        """Rows, examples and places at these positions, and the positions among them of those left out."""
        rows, examples, places = self.rows, self.examples, self.places
        excluded = frozenset(place for place, at in enumerate(positions) if at in self.excluded)
        return (
            [rows[at] for at in positions],
            [examples[at] for at in positions],
            [places[at] for at in positions],
            excluded,
        )


@dataclass
class Loader:
    """Reads, renders and tokenizes rows.

    Args:
        config: Formats, maximum length and its handling, and held-out share.
        encoder: Renders and tokenizes.
        vocabulary: Vocabulary size, to check pretokenized rows; None to trust them.
        progress: Called with the number of rows read; may raise to stop.
        preflight: Refuses data that would waste the run; None to refuse nothing.
        asks: Whether the run is new; see :func:`core.data.formats.detect.detect`.
    """

    config: Config
    encoder: Encoder
    vocabulary: int | None = None
    progress: Callable[[int], None] = lambda _: None
    preflight: Preflight | None = None
    asks: bool = False

    def training(self) -> tuple[Dataset, Dataset | None]:
        """The training rows, and the held-out rows, if there are any.

        Raises:
            UserError: As :meth:`load`, or if the data would waste the run and that is not allowed.
        """
        config, dataset = self.config, Dataset()
        weighted, exclusion = training_sources(config.data), Exclusion(config.data.excluded)
        bounds = [0]
        for sources, _ in weighted:
            for source in sources:
                self._load_source(source, dataset, None, exclusion)
            bounds.append(len(dataset.rows))
        exclusion.check()
        self._check_rows(dataset)
        _refuse_nothing(dataset, [source.name for sources, _ in weighted for source in sources])
        held_out = None
        if config.data.eval is not None:
            held_out = self.load(config.data.eval, limit=config.eval.max_rows)
        weights = [weight for _, weight in weighted]
        if config.data.eval_share or any(weight != 1 for weight in weights):
            divided = self._divide(dataset, bounds, weights)
            if divided is not None:
                divided.unfold()
                held_out = divided
                if divided.excluded and self.preflight is not None:
                    self.preflight.tell_excluded(name_places(divided.places[at] for at in divided.excluded))
                divided.excluded = frozenset()
        if config.data.corrections is not None:
            asked = self._add_corrections(dataset, Path(config.data.corrections))
            held_out = _without_questions(held_out, asked)
        _count_excluded(dataset)
        dataset.unfold()
        if self.preflight is not None and held_out is not None:
            trained = (example for at, example in self._each_of(dataset) if at not in dataset.excluded)
            self.preflight.check_leak(trained, held_out.examples)
        return dataset, held_out

    def _add_corrections(self, dataset: Dataset, path: Path) -> set[tuple[Message, ...]]:
        """Add corrections, each :data:`REPEATS` times, among :data:`OTHERS` times as many of the rows.

        Returns:
            The corrected questions, with their conversations.

        Raises:
            UserError: If the file cannot be read, or no correction of it can be used.
        """
        found = Dataset()
        corrections = read_corrections(path)
        for number, correction in enumerate(corrections, 1):
            try:
                examples = correction.examples(self.config.train.objective)
            except RowError as error:
                raise UserError(f"{path}, line {number}: {error.message}", "Fix the line, or remove it.") from error
            for example, encoded in zip(examples, self._encode(examples), strict=True):
                if isinstance(kept := self._fit(encoded), RowError):
                    raise UserError(f"{path}, line {number}: {kept.message}", "Shorten it, or remove it.")
                found.rows.append(kept)
                found.examples.append(example)
                found.places.append(FileLine(path.name, number))
        if not found.rows:
            raise UserError(f"{path} has no correction to train on.", "Leave data.corrections out.")
        before = len(set(map(id, dataset.rows)))
        wanted = min(OTHERS * REPEATS * len(found.rows), len(dataset.rows))
        drawn = random.Random(self.config.train.seed).sample(range(len(dataset.rows)), wanted)  # noqa: S311 - a draw
        rows, examples, places, dataset.excluded = dataset.taken(sorted(drawn))
        left = len(set(map(id, rows)))
        dataset.dropped[NOT_SAMPLED] += before - left
        dataset.read += len(found.rows)
        dataset.rows = rows + found.rows * REPEATS
        dataset.examples = examples + found.examples * REPEATS
        dataset.places = places + found.places * REPEATS
        dataset.repeated = len(dataset.rows) - left - len(found.rows)
        return {_question(correction.messages) for correction in corrections}

    def _each_of(self, dataset: Dataset) -> Iterator[tuple[int, Example]]:
        """The numbered examples of a dataset, with regular checks for a stop."""
        for number, example in enumerate(dataset.examples):
            if number % CHUNK_ROWS == CHUNK_ROWS - 1:
                self.progress(dataset.read)
            yield number, example

    def _check_rows(self, dataset: Dataset) -> None:
        if self.preflight is None:
            return
        self.preflight.check_supervised(
            dataset.read, dataset.dropped[NOTHING_SUPERVISED], dataset.first_dropped.get(NOTHING_SUPERVISED, "")
        )
        ends = [
            any(self.encoder.learns_stop(part) for part in row.rows)
            for row, example in zip(dataset.rows, dataset.examples, strict=True)
            if not example.text
        ]
        self.preflight.tell_ended(self.encoder.ended)
        self.preflight.tell_marked(dataset.marked)
        self.preflight.check_stop(len(ends) + dataset.dropped[NO_STOP_TOKEN], sum(ends))

    def load(self, references: str | list[str], *, limit: int | None = None) -> Dataset:
        """The rows of files, directories and registry entries.

        Args:
            references: One or several.
            limit: Maximum number of rows.

        Raises:
            UserError: If a file cannot be read, its format is unknown or cannot be trained on, a row is too long and
                that is refused, or no row is usable.
        """
        dataset = Dataset()
        sources = flat_sources(references, self.config.data.format, self.config.data.columns)
        for source in sources:
            self._load_source(source, dataset, limit, Exclusion(()))
            if limit is not None and len(dataset.rows) >= limit:
                break
        _refuse_nothing(dataset, [source.name for source in sources])
        dataset.unfold()
        return dataset

    def _load_source(self, source: DataSource, dataset: Dataset, limit: int | None, exclusion: Exclusion) -> None:
        file = source.open()
        rows = source.rows(file)
        head = list(itertools.islice(rows, SAMPLE))
        detection = source.detect(head, note=file.note, asks=self.asks)
        refuse_untrainable(detection, one_line(source.name), self.config.train.objective)
        if self.preflight is not None:
            self.preflight.check_format(one_line(source.name), find_ambiguity(head, detection, source.format))
        dataset.formats[source.name] = f"{detection.format}: {detection.reason}"
        unread, counts = UnreadColumns(detection), dataset.unread.setdefault(source.name, Counter())
        excluded = list[int]()
        for chunk in _chunks(itertools.chain(head, rows)):
            if limit is not None and len(dataset.rows) >= limit:
                return
            dataset.read += len(chunk)
            named = {row.index for row in chunk if exclusion.names(*row_line(source.path, row))}
            numbered = []
            for row, example in _examples(chunk, detection, source, dataset):
                numbered.append((row, self.encoder.unmarked(example)))
                dataset.marked += numbered[-1][1] is not example
            for row, _ in numbered:
                count_names(counts, dict.fromkeys(unread.of(row.data or {}), 1))
            for (row, example), encoded in zip(numbered, self._encode([item for _, item in numbered]), strict=True):
                kept = self._fit(encoded)
                if limit is not None and len(dataset.rows) >= limit:
                    dataset.read -= 1
                elif isinstance(kept, RowError):
                    if kept.code == "overlong" and self.config.data.overlong == "refuse":
                        raise UserError(
                            f"{_place(source, row)}: {kept.message}",
                            "Raise train.max_length, or set data.overlong to drop or truncate.",
                        )
                    _drop(dataset, kept, source, row)
                else:
                    if row.index in named:
                        excluded.append(len(dataset.rows))
                    dataset.rows.append(kept)
                    dataset.examples.append(example)
                    dataset.places.append(FileLine(row.file or source.path.name, row_line(source.path, row)[1]))
            self.progress(dataset.read)
        dataset.excluded |= frozenset(excluded)

    def _encode(self, examples: list[Example]) -> list[TokenizedRow | RowError]:
        encoded = iter(self.encoder.encode([example for example in examples if example.ids is None]))
        return [next(encoded) if example.ids is None else self._as_tokens(example) for example in examples]

    def _as_tokens(self, example: Example) -> TokenizedRow | RowError:
        """A pretokenized row."""
        ids = np.asarray(example.ids, dtype=np.int32)
        if self.vocabulary is not None and int(ids.max()) >= self.vocabulary:
            return RowError(
                "bad_tokens", f"The row has the token {int(ids.max())}; the model knows those below {self.vocabulary}."
            )
        supervised = np.asarray(example.labels, dtype=np.int32) != IGNORED_LABEL
        supervised[0] = False  # nothing predicts the first token
        if not supervised.any():
            return RowError(NOTHING_SUPERVISED, "No token of the row is learned.")
        return TokenizedRow(ids, supervised)

    def _fit(self, row: TokenizedRow | RowError) -> TokenizedRow | RowError:
        limit = self.config.train.max_length
        if isinstance(row, RowError) or (longest := row.longest) <= limit:
            return row
        if self.config.data.overlong == "truncate":
            cut = [_cut(part, limit) for part in row.rows]
            if useful := [part for part in cut if all(map(supervised_count, part.sequences))]:
                return useful[0].with_further(useful[1:])
            return RowError(NOTHING_SUPERVISED, f"Cut at {limit} tokens, nothing of the row is learned.")
        return RowError("overlong", f"The row has {longest} tokens, more than train.max_length = {limit}.")

    def _divide(self, dataset: Dataset, bounds: list[int], weights: list[float]) -> Dataset | None:
        """Hold rows out and repeat the others by weight. ``bounds`` are the limits of each entry's rows."""
        share, seed = self.config.data.eval_share, self.config.train.seed
        prints = Fingerprints()
        for number, example in self._each_of(dataset):
            prints.add(number, example)
        division = divide_rows(prints, bounds, weights, share, seed)
        kept_out, counts = division.held_out, division.counts
        if division.crosses and self.preflight is not None:
            self.preflight.tell_alike()
        if share and not kept_out:
            raise UserError("No row can be held out: all rows are the same.", "Set data.eval_share = 0.")
        measured = sorted(kept_out)[: self.config.eval.max_rows]
        held_out = Dataset(*dataset.taken(measured), read=len(measured), formats=dict(dataset.formats))
        used = [position for position, count in enumerate(counts) for _ in range(count)]
        if not used:
            raise UserError("No row is left to train on.", "Raise data.weights, or lower data.eval_share.")
        skipped = sum(not count for count in counts) - len(kept_out)
        dataset.dropped += Counter({HELD_OUT: len(kept_out), NOT_SAMPLED: skipped})
        dataset.repeated = len(used) - len(set(used))
        dataset.rows, dataset.examples, dataset.places, dataset.excluded = dataset.taken(used)
        return held_out if kept_out else None


def _count_excluded(dataset: Dataset) -> None:
    """Count the rows left out by ``data.exclude``, each once however often it is repeated."""
    if not dataset.excluded:
        return
    if len(dataset.excluded) == len(dataset.rows):
        raise UserError("No row is left to train on: data.exclude leaves out all.", "Take entries out of it.")
    dataset.dropped[EXCLUDED] = len({id(dataset.examples[at]) for at in dataset.excluded})


def _question(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """The turns of a question without its system prompt, for comparison."""
    return tuple(Message(turn["role"], turn["content"]) for turn in messages if turn["role"] != "system")


def _without_questions(held_out: Dataset | None, asked: Collection[tuple[Message, ...]]) -> Dataset | None:
    """The held-out rows without those that ask a corrected question; None if none is left."""
    if held_out is None:
        return None
    kept = [
        place
        for place, example in enumerate(held_out.examples)
        if _question([turn.fields() for turn in example.prompt]) not in asked
    ]
    if len(kept) == len(held_out.rows):
        return held_out
    return Dataset(*held_out.taken(kept), read=len(kept), formats=held_out.formats) if kept else None


def _refuse_nothing(dataset: Dataset, names: list[str]) -> None:
    if dataset.rows:
        return
    reasons = "; ".join(f"{count} x {code}" for code, count in dataset.dropped.most_common())
    first = next(iter(dataset.first_dropped.values()), "")
    hint = "Look at the rows, train.max_length and data.format."
    if set(dataset.dropped) & TEMPLATE_CODES:
        hint = "Fix the chat template, or name another one in template.file."
    elif len(dataset.dropped) == 1:
        hint = kind_of(*dataset.dropped).hint
    raise UserError(
        f"No row of {', '.join(map(one_line, names))} can be used ({reasons or 'no rows'}). {first}".rstrip(), hint
    )


def _cut(row: TokenizedRow, limit: int) -> TokenizedRow:
    rejected = next((_cut(other, limit) for other in row.sequences[1:]), None)
    return TokenizedRow(row.input_ids[:limit], row.supervised[:limit], rejected=rejected, label=row.label)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        yield chunk


def _examples(
    chunk: list[Row], detection: Detection, source: DataSource, dataset: Dataset
) -> Iterator[tuple[Row, Example]]:
    for row in chunk:
        try:
            yield row, detection.example(row)
        except RowError as error:
            _drop(dataset, error, source, row)


def _place(source: DataSource, row: Row) -> str:
    return f"{row_line(source.path, row)[0]}, {row.place}"


def _drop(dataset: Dataset, error: RowError, source: DataSource, row: Row) -> None:
    dataset.dropped[error.code] += 1
    place = f"{row.file or source.path.name}, {row.place}"
    dataset.first_dropped.setdefault(error.code, f"{place}: {error.message}")
