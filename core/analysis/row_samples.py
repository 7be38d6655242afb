"""Samples of a dataset, read in the sandbox: row counts, token counts of the first rows, and a row as tokens."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.analysis.problems import FileLine
from core.analysis.result import Analysis, AnalysisRequest, request_for
from core.data.conversation import RowError
from core.data.exclusion import row_line
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE, Detection
from core.data.registries.resolve import flat_sources, resolve_source
from core.errors import UserError
from core.models.find import find_model, missing_model
from core.paths import cache_dir, datasets_dir, make_private_dir
from core.sandbox.pool import sandboxed
from core.sandbox.rights import Rights, reading
from core.text import one_line

if TYPE_CHECKING:
    from core.config.schema import Config
    from core.data.conversation import Example
    from core.data.registries.source import DataSource
    from core.template.mask import Masker
    from core.template.tokenizer import MaskedRow


def rights_for(request: AnalysisRequest) -> Rights:
    """Rights to read the rows of a request: its files, and the cache of unpacked text.

    The helpers that unpack packed files have the same rights.

    Raises:
        UserError: If a registry among the sources cannot be read, or a Hub dataset is not on this machine.
    """
    read = reading(*_named(request), datasets_dir(), cache_dir()).reads
    with contextlib.suppress(UserError):  # without a cache nothing is kept, and packed files are refused later
        make_private_dir(cache_dir())
    return Rights(read, writes=(str(cache_dir()),), starts_helpers=True)


def _named(request: AnalysisRequest) -> Iterator[str]:
    if request.masks is not None:
        yield request.masks.model
    for references in (request.train, request.eval):
        sources = flat_sources(list(references), request.format, request.columns)
        paths = itertools.chain.from_iterable((source.path, *source.files) for source in sources)
        for named in (*references, *map(str, paths)):
            # The part after # is a registry entry or a split of a directory.
            yield from {named, named.rpartition("#")[0] or named}


#: Rows compared to find out if a dataset repeats one row.
_COMPARED = 50


@dataclass(frozen=True)
class RowCount:
    """Number of rows of a dataset.

    Args:
        rows: The rows, readable or not.
        differ: True if at least two of the first rows differ.
    """

    rows: int
    differ: bool


def count_rows(entries: Iterable[str]) -> RowCount:
    """Count the rows of entries of ``data.train``; blocks, since every file is indexed.

    Raises:
        UserError: If an entry cannot be read.
    """
    count = 0
    seen: set[str] = set()
    for entry in entries:
        for source in resolve_source(entry):
            with source.open() as file:
                file.index()
                count += source.count(file)
                if len(seen) < 2:
                    seen.update(repr(row.data) for row in file.rows(0, _COMPARED))
    return RowCount(count, len(seen) > 1)


#: Rows sampled of each source.
ROWS = 300
#: CPU seconds for all of them.
_SECONDS = 30
#: Most rows, sources, and characters of a row that :func:`try_first_rows` renders.
_TRIED_ROWS, _TRIED_SOURCES, _TRIED_CHARACTERS = 8, 8, 1 << 16


def sample_lengths(config: Config) -> list[int]:
    """Token counts of the first rows of each source before truncation, computed in the sandbox.

    A preference pair counts with its longer answer. Empty if the tokenizer is not on this machine.

    Args:
        config: A checked configuration with readable data.

    Raises:
        UserError: If tokenizer or template exceed the limits of the sandbox.
    """
    from core.template.builtin import template_source

    try:
        model = str(tokenizer_directory(config.model.base))
        template = template_source(config.template.file, config.template.name)
        request = request_for(config, model=model, template=template).without_limit()
        rights = rights_for(request)
    except UserError:
        return []
    return sandboxed(_lengths, _about(request), rights=rights, seconds=_SECONDS)(request)


def try_first_rows(request: AnalysisRequest) -> None:
    """Render and tokenize a few rows of each source in the sandbox, before a process without one does it.

    Errors of files and rows are ignored: the full reading reports them.

    Args:
        request: The request; it must name a model.

    Raises:
        UserError: If tokenizer or template exceed the limits of a rendering or of the sandbox.
    """
    sandboxed(_try, _about(request), rights=rights_for(request))(request)


def _about(request: AnalysisRequest) -> str:
    settings = request.masks
    if settings is not None and settings.template is None:
        return f"The {one_line(f'tokenizer or chat template of {settings.model}')}"
    return "The chat template"


def _lengths(request: AnalysisRequest) -> list[int]:
    settings = request.masks
    if settings is None:
        return []
    from core.template.jinja_sandbox import TemplateTimeError

    try:
        masker = settings.masker()
    except TemplateTimeError:
        raise
    except UserError:
        return []
    lengths: list[int] = []
    for source in flat_sources(list(request.train), request.format, request.columns):
        masked = masker.mask(_first_examples(source, ROWS))
        lengths += [row.longest for row in masked if not isinstance(row, RowError)]
    return lengths


def _try(request: AnalysisRequest) -> None:
    from core.template.jinja_sandbox import TemplateTimeError

    if request.masks is None:
        return
    try:
        masker = request.masks.masker()
        sources = flat_sources([*request.train, *request.eval], request.format, request.columns)
        for source in sources[:_TRIED_SOURCES]:
            examples = _first_examples(source, _TRIED_ROWS)
            masker.mask([example for example in examples if example.characters <= _TRIED_CHARACTERS])
    except (TemplateTimeError, MemoryError):
        raise
    except Exception:  # libraries raise anything for a damaged file
        return


def _first_examples(source: DataSource, count: int) -> list[Example]:
    """Examples of the first rows; unusable rows are skipped."""
    with source.open() as file:
        detection = source.recognize(file)
        examples = []
        for row in file.rows(0, count):
            with contextlib.suppress(RowError):
                examples.append(detection.example(row))
        return examples


@dataclass(frozen=True)
class Token:
    """A token for display. A character made of several tokens is in the text of the last of them."""

    id: int
    text: str
    supervised: bool


@dataclass(frozen=True)
class TokenSample:
    """A row as tokens, or the reason why it has none.

    Args:
        index: Number of the row, from 0, through all sources.
        tokens: Tokens of its first training sequence.
        further: Tokens of its further training sequences, for turns that the template renders differently once later
            turns follow.
        cut: Position at which ``tokens`` is truncated, if longer than the limit.
        rejected: Tokens with the worse answer of a preference pair; ``tokens`` has the better answer.
        rejected_cut: Position at which ``rejected`` is truncated.
        label: True if its answer is labeled good; None for rows without a label.
        code: Code of the reason not to use the row; empty if it is used.
        error: That reason, in a sentence.
    """

    index: int
    tokens: tuple[Token, ...] = ()
    further: tuple[tuple[Token, ...], ...] = ()
    cut: int | None = None
    rejected: tuple[Token, ...] = ()
    rejected_cut: int | None = None
    label: bool | None = None
    code: str = ""
    error: str = ""


def sample_row(request: AnalysisRequest, analysis: Analysis, number: int | None = None) -> TokenSample | None:
    """Tokens of one row of an analyzed dataset, computed in the sandbox.

    Args:
        request: Request of the analysis; it must name a model.
        analysis: Result of the analysis.
        number: Number of the row, from 1; None for the first usable row, even if the objective does not train on its
            format.

    Returns:
        The row; None if ``number`` is None and no row is usable.

    Raises:
        UserError: If there is no row of that number, or the tokenizer cannot be read.
    """
    if request.masks is None:
        raise UserError("There is no tokenizer.", "Name a model.")
    about = f"The tokenizer or chat template of {one_line(request.masks.model)}"
    sample = sandboxed(_sample, about, rights=rights_for(request))
    if number is not None:
        if not 1 <= number <= analysis.rows:
            raise UserError(f"There is no row {number}.", f"The rows are counted from 1 to {analysis.rows}.")
        return sample(request, number - 1)
    reasons = (item for item in analysis.problems if item.kind.level == "drop" and item.code != "not_trained_on")
    unused = {index for problem in reasons for index in problem.indices}
    first = next((index for index in range(analysis.rows) if index not in unused), None)
    return None if first is None else sample(request, first)


def _sample(request: AnalysisRequest, index: int) -> TokenSample:
    if request.masks is None:
        raise ValueError("The request names no model.")
    masker = request.masks.masker()
    row, detection = _find(request, index)
    try:
        masked = masker.mask([detection.example(row)])[0]
    except RowError as error:
        masked = error
    if isinstance(masked, RowError):
        return TokenSample(index, code=masked.code, error=one_line(masked.message, 300))
    first, *further = (_tokens(masker, part) for part in masked.rows)
    worse = masked.rejected
    return TokenSample(
        index,
        first,
        tuple(further),
        masked.cut,
        rejected=() if worse is None else _tokens(masker, worse),
        rejected_cut=None if worse is None else worse.cut,
        label=masked.label,
    )


def _tokens(masker: Masker, row: MaskedRow) -> tuple[Token, ...]:
    texts = masker.tokenizer.token_texts(row.input_ids)
    return tuple(
        Token(number, text, bool(learned))
        for number, text, learned in zip(row.input_ids, texts, row.supervised, strict=True)
    )


def _find(request: AnalysisRequest, index: int) -> tuple[Row, Detection]:
    first = 0
    for source in flat_sources(list(request.train), request.format, request.columns):
        with source.open() as file:
            while not file.complete and file.count_known <= max(index - first, SAMPLE - 1):
                file.advance()
            rows = source.count(file)
            if index - first < rows:
                return file.row(index - first), source.recognize(file)
            first += rows
    raise UserError(f"There is no row {index + 1}.", "The files may have changed.")


def row_places(request: AnalysisRequest, numbers: Iterable[int]) -> list[tuple[str, int]]:
    """File and line of some rows of ``request.train``, as ``data.exclude`` names them; read in the sandbox.

    Args:
        request: The request of an analysis.
        numbers: Numbers of the rows, from 0, through all sources.

    Raises:
        UserError: If a file cannot be read.
    """
    return sandboxed(_places, "The data", rights=rights_for(request), seconds=_SECONDS)(request, sorted(numbers))


def _places(request: AnalysisRequest, numbers: list[int]) -> list[tuple[str, int]]:
    found, first = [], 0
    sources = flat_sources(list(request.train), request.format, request.columns)
    for source in sources:
        with source.open() as file:
            file.index()
            rows = source.count(file)
            for number in (number for number in numbers if first <= number < first + rows):
                path, line = row_line(source.path, file.row(number - first))
                # Two files may have the same name.
                found.append((Path(path).name if len(sources) == 1 and path == str(source.path) else path, line))
            first += rows
    return found


def find_row(request: AnalysisRequest, place: FileLine) -> tuple[str, int] | None:
    """Entry of ``request.train`` with a row, and the row's number in it, from 0; None if there is none.

    It is read in the sandbox.

    Args:
        request: The request of an analysis.
        place: File and line of the row, as a run names them.

    Raises:
        UserError: If a file cannot be read.
    """
    return sandboxed(_seek, "The data", rights=rights_for(request), seconds=_SECONDS)(request, place)


def _seek(request: AnalysisRequest, place: FileLine) -> tuple[str, int] | None:
    for entry in request.train:
        sources = flat_sources([entry], request.format, request.columns)
        for source in sources:
            with source.open() as file:
                file.index()
                rows = source.count(file)
                # Nearly every file has a row a line.
                near = min(place.line, rows)
                for number in itertools.chain(range(near - 1, -1, -1), range(near, rows)):
                    row = file.row(number)
                    found = FileLine.of(source.path, row)
                    if found.file != place.file and not row.file:
                        break
                    if found == place:
                        return entry if len(sources) == 1 else str(source.path), number
    return None


def tokenizer_directory(name: str) -> Path:
    """Directory of a model's tokenizer; see :func:`core.models.find.find_model`.

    Raises:
        UserError: If the model is not on this machine.
    """
    found = find_model(name)
    if found is None:
        raise missing_model(name)
    return found
