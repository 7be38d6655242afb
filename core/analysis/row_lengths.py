"""Row length sample: token counts of a dataset's first rows, for decisions that cannot wait for a full analysis."""

from __future__ import annotations

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

#: Rows sampled of each source.
ROWS = 300
#: Processor time for all of them.
_SECONDS = 30


def sample_lengths(config: Config) -> list[int]:
    """Token counts of the first rows of each source before truncation, made in the sandbox; of a preference pair, those
    with the longer answer. Empty if the tokenizer is not on this machine.

    Args:
        config: A checked configuration, its data readable.

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
    about = "chat template" if template is not None else f"tokenizer or chat template of {model}"
    return sandboxed(_lengths, f"The {one_line(about)}", rights=rights, seconds=_SECONDS)(request)


def _lengths(request: AnalysisRequest) -> list[int]:
    settings = request.masks
    if settings is None:
        return []
    try:
        masker = settings.masker()
    except UserError:
        return []
    lengths: list[int] = []
    for source in flat_sources(list(request.train), request.format, request.columns):
        with source.open() as file:
            detection = source.recognize(file)
            examples = []
            for row in file.rows(0, ROWS):
                try:
                    examples.append(detection.example(row))
                except RowError:
                    continue
            lengths += [masked.longest for masked in masker.mask(examples) if not isinstance(masked, RowError)]
    return lengths
