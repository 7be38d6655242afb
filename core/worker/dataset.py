"""Data files turned into tokenized rows, every row accounted for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.config.schema import Config
from core.data.conversation import Example, RowError
from core.data.formats import SAMPLE, Format, choose, row_example
from core.data.reader import Row, read_rows
from core.errors import UserError
from core.runs.events import DataEvent
from core.worker.batches import supervised_count
from core.worker.template import Encoder, TokenizedRow

#: Rows tokenized in one call.
CHUNK_ROWS = 256


@dataclass
class Dataset:
    """The usable rows of some files; ``examples`` and ``rows`` go together."""

    rows: list[TokenizedRow] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    """Reason to a sentence about the first row dropped for it."""
    formats: dict[str, str] = field(default_factory=dict)
    """File to its format and why."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.rows]

    def event(self) -> DataEvent:
        """The ``data`` event about these rows."""
        return DataEvent(
            rows=self.read,
            used=len(self.rows),
            dropped=dict(sorted(self.dropped.items())),
            tokens=sum(len(row) for row in self.rows),
            supervised_tokens=sum(supervised_count(row) for row in self.rows),
            longest=max((len(row) for row in self.rows), default=0),
        )


def load_dataset(
    paths: str | list[str],
    config: Config,
    encoder: Encoder,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Read, render and tokenize files.

    Args:
        paths: One path or several.
        config: For the format, the greatest length and what happens beyond it.
        encoder: Renders and tokenizes.
        limit: Use at most so many rows.
        progress: Told how many rows have been read; may raise to stop.

    Raises:
        UserError: If a file cannot be read, its format is not known, a row is too long where that is refused, or
            nothing is left to use.
    """
    dataset = Dataset()
    names = [paths] if isinstance(paths, str) else paths
    for name in names:
        _load_file(Path(name), config, encoder, dataset, limit, progress)
        if limit is not None and len(dataset.rows) >= limit:
            break
    if not dataset.rows:
        reasons = "; ".join(f"{count} x {code}" for code, count in dataset.dropped.most_common())
        first = next(iter(dataset.first_dropped.values()), "")
        by_template = set(dataset.dropped) & {"template_error", "template_rewrites", "no_stop_token"}
        raise UserError(
            f"No row of {', '.join(names)} can be used ({reasons or 'no rows'}). {first}".rstrip(),
            "Mend the chat template, or name another one in template.file."
            if by_template
            else "Look at the rows, train.max_length and data.format.",
        )
    return dataset


def _load_file(
    path: Path,
    config: Config,
    encoder: Encoder,
    dataset: Dataset,
    limit: int | None,
    progress: Callable[[int], None],
) -> None:
    rows = read_rows(path)
    head = list(itertools.islice(rows, SAMPLE))
    detection = choose(head, config.data.format, str(path))
    dataset.formats[str(path)] = f"{detection.format}: {detection.reason}"
    for chunk in _chunks(itertools.chain(head, rows)):
        if limit is not None and len(dataset.rows) >= limit:
            return
        dataset.read += len(chunk)
        numbered = list(_examples(chunk, detection.format, path, dataset))
        for (row, example), encoded in zip(numbered, encoder.encode([item for _, item in numbered]), strict=True):
            kept = _fit(encoded, config)
            if limit is not None and len(dataset.rows) >= limit:
                dataset.read -= 1
            elif isinstance(kept, RowError):
                if kept.code == "overlong" and config.data.overlong == "refuse":
                    raise UserError(
                        f"{path}, line {row.line}: {kept.message}",
                        "Raise train.max_length, or set data.overlong to drop or truncate.",
                    )
                _drop(dataset, kept, path, row)
            else:
                dataset.rows.append(kept)
                dataset.examples.append(example)
        progress(dataset.read)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        yield chunk


def _examples(chunk: list[Row], name: Format, path: Path, dataset: Dataset) -> Iterator[tuple[Row, Example]]:
    for row in chunk:
        try:
            yield row, row_example(row, name)
        except RowError as error:
            _drop(dataset, error, path, row)


def _fit(row: TokenizedRow | RowError, config: Config) -> TokenizedRow | RowError:
    limit = config.train.max_length
    if isinstance(row, RowError) or len(row) <= limit:
        return row
    if config.data.overlong == "truncate":
        cut = TokenizedRow(row.input_ids[:limit], row.supervised[:limit])
        if supervised_count(cut):
            return cut
        return RowError("nothing_supervised", f"Cut at {limit} tokens, nothing of the row is learned.")
    return RowError("overlong", f"The row has {len(row)} tokens, more than train.max_length = {limit}.")


def _drop(dataset: Dataset, error: RowError, path: Path, row: Row) -> None:
    dataset.dropped[error.code] += 1
    dataset.first_dropped.setdefault(error.code, f"{path.name}, line {row.line}: {error.message}")
