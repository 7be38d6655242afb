"""Row length sample: token counts of the first rows of a dataset, for decisions that cannot wait for an analysis."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from core.analysis.result import AnalysisRequest, request_for
from core.analysis.rights import rights_for
from core.analysis.row_tokens import tokenizer_directory
from core.data.conversation import RowError
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.sandbox.pool import sandboxed
from core.text import one_line

if TYPE_CHECKING:
    from core.config.schema import Config
    from core.data.conversation import Example
    from core.data.registries.source import DataSource

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
