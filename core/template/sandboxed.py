"""Sandboxed templates and tokenizers, for the app and the commands.

Both are untrusted: a template is a program, and a tokenizer can turn a word into a gigabyte. The functions here run in
a process with limits, which caches loaded tokenizers until their files change. All of them block.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.data.conversation import Example, portions
from core.errors import UserError
from core.sandbox.pool import POOL, SandboxError, sandboxed
from core.sandbox.rights import NO_RIGHTS, reading
from core.template.preview import Preview, PreviewRow, Refusal, RowLength
from core.template.settings import MaskSettings
from core.text import one_line

if TYPE_CHECKING:
    from core.template.mask import Masker
    from core.template.tokenizer import ModelTokenizer


#: Name of the sandbox process that caches tokenizers.
_KEEP = "template"
#: Consecutive rows over the limits after which no more are tried.
_MOST_BOUNDS = 3
#: Characters of rows measured in one call.
_CHARACTERS = 1 << 20
_ROW, _ROW_HINT = (
    "The row as tokens",
    "Shorten the row or leave it out; if all are so, it is the template or the tokenizer.",
)
#: Files of a tokenizer.
_FILES = ("*.json", "*.jinja", "additional_chat_templates/*.jinja")
_Stamps = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class TokenizerFacts:
    """Facts about a model's tokenizer that matter for templates.

    Args:
        chat_template: The model's own chat template, or None.
        missing: Requested texts that are not tokens of the model.
    """

    chat_template: str | None
    missing: tuple[str, ...]


def warm() -> None:
    """Start a sandbox process with the libraries for templates and tokenizers loaded."""
    POOL.warm("core.template.sandboxed", "core.template.render_preview")


def read_tokenizer(model: Path, texts: Sequence[str] = ()) -> TokenizerFacts:
    """Load a model's tokenizer and return its facts.

    Args:
        model: Directory of the model.
        texts: Texts that should be tokens.

    Raises:
        UserError: If it cannot be read.
    """
    about = f"The tokenizer of {one_line(str(model))}"
    return sandboxed(_read_tokenizer, about, rights=reading(model), keep=_KEEP)(model, tuple(texts))


def check_template(source: str) -> None:
    """Check that a chat template is valid Jinja.

    Raises:
        UserError: If it is not; the message names the line.
    """
    sandboxed(_check_template, "The chat template", keep=_KEEP)(source)


class RowMasks:
    """Tokenizes and masks rows with fixed settings, in the sandbox; may be used from several threads.

    Only the row over the limits is refused. After several consecutive rows over the limits, the tokenizer or the
    template is at fault, and no more rows are tried.

    Args:
        settings: Settings of tokenization and loss mask.
    """

    def __init__(self, settings: MaskSettings) -> None:
        self.settings = settings
        self._rights = reading(settings.model)
        which = "chat template" if settings.template is not None else f"tokenizer or chat template of {settings.model}"
        self._about = f"The {one_line(which)}"
        self._bounds = 0
        self._failure: UserError | None = None

    def check(self) -> None:
        """Load tokenizer and template, so the first row takes no longer than others.

        Raises:
            UserError: If either cannot be loaded.
        """
        sandboxed(_check_settings, self._about, rights=self._rights, keep=_KEEP)(self.settings)

    def row(self, example: Example) -> tuple[PreviewRow, ...] | Refusal:
        """Training sequences of a row, for display; the better answer of a preference pair comes first.

        Raises:
            UserError: If tokenizer or template cannot be loaded, or exceed the limits.
        """
        self._see_failure()
        try:
            call = sandboxed(_mask_row, _ROW, rights=self._rights, keep=_KEEP, hint=_ROW_HINT)
            found = call(self.settings, example)
        except UserError as error:
            self._count(error)
            raise
        self._bounds = 0
        return found

    def lengths(self, examples: Sequence[Example]) -> list[RowLength | Refusal | UserError]:
        """Token counts of rows, in order, with an error for each row over the limits.

        Raises:
            UserError: As :meth:`row`, except for errors of single rows.
        """
        return [length for portion in portions(examples, _CHARACTERS) for length in self._lengths(portion)]

    def _lengths(self, examples: Sequence[Example]) -> list[RowLength | Refusal | UserError]:
        self._see_failure()
        try:
            call = sandboxed(_measure_rows, _ROW, rights=self._rights, keep=_KEEP, hint=_ROW_HINT)
            found = call(self.settings, list(examples))
        except SandboxError as error:
            if len(examples) > 1:
                # Together they may take long even if no single row does.
                return [length for example in examples for length in self._lengths([example])]
            self._count(error)
            return [error]
        except UserError as error:
            self._count(error)
            raise
        self._bounds = 0
        return [*found]

    def _see_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _count(self, error: UserError) -> None:
        self._bounds += 1
        if self._bounds >= _MOST_BOUNDS and not isinstance(error, SandboxError):
            self._failure = error
        elif self._bounds >= _MOST_BOUNDS:
            self._failure = SandboxError(
                f"{self._about} takes more time or memory than any should, row after row, so no more rows are tried.",
                "Get it again from where it is from, or take another one.",
            )


def preview(source: str, example: Example, settings: MaskSettings | None) -> Preview:
    """Preview of a conversation with a template; see :func:`~core.template.render_preview.preview_template`.

    Args:
        source: The template.
        example: The conversation.
        settings: Settings of tokenization and loss mask, whose template is ignored; None without a tokenizer.

    Returns:
        The preview; its ``problem`` has errors of the template, including its time limit.

    Raises:
        UserError: If the tokenizer cannot be read.
    """
    rights = NO_RIGHTS if settings is None else reading(settings.model)
    return sandboxed(_preview, "The chat template", rights=rights, keep=_KEEP)(source, example, settings)


# Runs inside the sandbox process


def _read_tokenizer(model: Path, texts: tuple[str, ...]) -> TokenizerFacts:
    tokenizer = _tokenizer(str(model), _stamps(str(model)))
    return TokenizerFacts(tokenizer.chat_template, tuple(text for text in texts if tokenizer.token_id(text) is None))


def _check_template(source: str) -> None:
    from core.template.render import ChatTemplate

    ChatTemplate(source).check()


def _check_settings(settings: MaskSettings) -> None:
    _masker(settings, _stamps(settings.model))


def _mask_row(settings: MaskSettings, example: Example) -> tuple[PreviewRow, ...] | Refusal:
    from core.data.conversation import RowError
    from core.template.render_preview import masked_rows

    masker = _masker(settings, _stamps(settings.model))
    found = masker.mask([example])[0]
    return Refusal(found.code, found.message) if isinstance(found, RowError) else masked_rows(found, masker.tokenizer)


def _measure_rows(settings: MaskSettings, examples: list[Example]) -> list[RowLength | Refusal]:
    from core.data.conversation import RowError

    lengths: list[RowLength | Refusal] = []
    for found in _masker(settings, _stamps(settings.model)).mask(examples):
        if isinstance(found, RowError):
            lengths.append(Refusal(found.code, found.message))
            continue
        answers = [sequence.rows for sequence in found.sequences]
        longer = max(answers, key=lambda rows: sum(map(len, rows)))
        lengths.append(
            RowLength(
                sum(map(len, longer)),
                sum(row.supervised_count for row in longer),
                any(row.cut is not None for rows in answers for row in rows),
            )
        )
    return lengths


def _preview(source: str, example: Example, settings: MaskSettings | None) -> Preview:
    from core.template.render_preview import preview_template

    if settings is None:
        return preview_template(source, example)
    return preview_template(source, example, _tokenizer(settings.model, _stamps(settings.model)), settings)


@functools.lru_cache(maxsize=1)
def _tokenizer(model: str, _: _Stamps) -> ModelTokenizer:
    from core.template.tokenizer import load_tokenizer

    return load_tokenizer(model)


@functools.lru_cache(maxsize=4)
def _masker(settings: MaskSettings, stamps: _Stamps) -> Masker:
    return settings.masker(_tokenizer(settings.model, stamps))


def _stamps(model: str) -> _Stamps:
    """Stamps of a tokenizer's files, to detect changes."""
    found = []
    for path in (path for pattern in _FILES for path in Path(model).glob(pattern)):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(sorted(found))
