"""Token preview: a row of a dataset as the tokens that the model sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.analysis.result import Analysis, AnalysisRequest
from core.analysis.rights import rights_for
from core.data.conversation import RowError
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE, Detection
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.models.find import find_model, missing_model
from core.sandbox.pool import sandboxed
from core.text import one_line

if TYPE_CHECKING:
    from core.template.mask import Masker
    from core.template.row_tokenizer import MaskedRow


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
            rows = file.count_known if source.limit is None else min(file.count_known, source.limit)
            if index - first < rows:
                return file.row(index - first), source.recognize(file)
            first += rows
    raise UserError(f"There is no row {index + 1}.", "The files may have changed.")


def tokenizer_directory(name: str) -> Path:
    """Directory of a model's tokenizer; see :func:`core.models.find.find_model`.

    Raises:
        UserError: If the model is not on this machine.
    """
    found = find_model(name)
    if found is None:
        raise missing_model(name)
    return found
