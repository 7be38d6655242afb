"""Encoding of examples as tokens and loss masks: :mod:`core.template` with transformers' tokenizer."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from core.data.conversation import Example, RowError, portions
from core.errors import UserError
from core.sandbox.limits import TimeLimitError, cpu_limit, growth_limit
from core.template.mask import Masker
from core.template.render import ChatTemplate
from core.template.settings import MaskSettings
from core.template.stops import stop_token_ids as stops_of
from core.template.tokenizer import SPECIAL_NAMES, MaskedRow, ModelTokenizer, TokenRow
from core.text import one_line

#: CPU seconds for a batch of rows or a prompt; a hundredth of a second is usual.
_SECONDS = 60
#: Maximum number of characters of a batch of rows.
_CHARACTERS = 4 << 20
_PLAIN = MaskSettings("")


class TokenizedRow(TokenRow["np.ndarray[Any, np.dtype[np.int32]]", "np.ndarray[Any, np.dtype[np.bool_]]"]):
    """A row ready for batching: ``input_ids`` and ``supervised`` are ``(length,)``, int32 and bool."""


class Encoder:
    """Renders examples with the model's chat template and tokenizes them. See :mod:`core.template` for the loss masks.

    Args:
        tokenizer: The model's transformers tokenizer.
        stop_ids: The tokens that end an answer.
        template: A Jinja chat template instead of the tokenizer's own.
        settings: Supervised parts of a conversation, and usable rows.
        now: Date for templates that insert one; None for today.
        check: Called regularly while rows are encoded; may raise to stop.

    Raises:
        UserError: If template or tokenizer exceed the limits on memory or time; also raised by all methods.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_ids: Sequence[int],
        template: str | None = None,
        *,
        settings: MaskSettings = _PLAIN,
        now: datetime | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._check = check
        ours = as_model_tokenizer(tokenizer, stop_ids)
        with _bounded("a conversation", check):
            self._masker = Masker(
                ours,
                _chat_template(ours, template, now),
                settings.supervise,
                allow_special=settings.allow_special,
                end_answers=settings.end_answers,
            )
        self._stops = frozenset(self._masker.stop_ids)

    def encode(self, examples: Sequence[Example]) -> list[TokenizedRow | RowError]:
        """Tokenize examples in order. An unusable example yields its error."""
        masked = itertools.chain.from_iterable(map(self._mask, portions(examples, _CHARACTERS)))
        return [row if isinstance(row, RowError) else _tokenized(row) for row in masked]

    def _mask(self, examples: Sequence[Example]) -> list[MaskedRow | RowError]:
        with _bounded(f"{len(examples)} rows", self._check):
            return self._masker.mask(examples)

    @property
    def ended(self) -> int:
        """Number of answers so far to which the end-of-text token was added."""
        return self._masker.ended

    def unmarked(self, example: Example) -> Example:
        """An example without end marks at the end of its answers; the same object if there are none."""
        return self._masker.unmarked(example)

    def learns_stop(self, row: TokenizedRow) -> bool:
        """True if a stop token is in the loss."""
        return not self._stops.isdisjoint(row.input_ids[row.supervised].tolist())

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as text, ready for the model to answer."""
        with _bounded("a conversation", self._check):
            return self._masker.prompt(messages)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The same as tokens, identical to the tokens before the answer in a training row.

        Args:
            messages: ``role``, ``content`` and the other fields of each.
            tools: Tools that may be called, in OpenAI's schema.
        """
        with _bounded("a conversation", self._check):
            return self._masker.prompt_ids(messages, tools)

    def call_grammar(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        *,
        several: bool,
    ) -> str:
        """Grammar of an answer that calls tools; see :meth:`core.template.mask.Masker.call_grammar`."""
        with _bounded("a conversation", self._check):
            return self._masker.call_grammar(messages, tools, names, several=several)

    def text_ids(self, text: str) -> list[int]:
        """A text for the model to continue, as tokens, identical to those in training without the end."""
        with _bounded("a text", self._check):
            return self._masker.text_ids(text)


@contextlib.contextmanager
def _bounded(work: str, check: Callable[[], None] | None) -> Iterator[None]:
    """Context that limits time and memory of template and tokenizer.

    Args:
        work: Work inside, for the error message.
        check: Called regularly; may raise to stop.

    Raises:
        UserError: If a limit is exceeded.
    """
    hint = "Take another template (template.file), or get the model again from where it is from."
    try:
        with growth_limit(), cpu_limit(_SECONDS, kills=False, check=check):
            yield
    except TimeLimitError as error:
        raise UserError(f"The chat template or the tokenizer takes more than {_SECONDS} s for {work}.", hint) from error
    except MemoryError as error:
        text = f"The chat template or the tokenizer needs more memory than it may have for {work}."
        raise UserError(text, hint) from error


def _tokenized(row: MaskedRow) -> TokenizedRow:
    return TokenizedRow(
        np.frombuffer(row.input_ids, dtype=np.int32),
        np.frombuffer(row.supervised, dtype=np.bool_),
        tuple(_tokenized(further) for further in row.further),
        None if row.rejected is None else _tokenized(row.rejected),
        row.label,
    )


def as_model_tokenizer(tokenizer: Any, stop_ids: Sequence[int]) -> ModelTokenizer:
    """A transformers tokenizer converted to ours, with the same tokens.

    Raises:
        UserError: If it cannot be converted.
    """
    template = tokenizer.chat_template
    named = template if isinstance(template, dict) else {"default": template}
    specials = {name: getattr(tokenizer, name, None) for name in SPECIAL_NAMES}
    return ModelTokenizer(
        backend_of(tokenizer),
        special_tokens={name: str(text) for name, text in specials.items() if text is not None},
        stop_ids=stop_ids,
        chat_template=named.get("default"),
        tool_template=named.get("tool_use"),
        max_length=None,
    )


def backend_of(tokenizer: Any) -> Tokenizer:
    """The tokenizers object inside, or a conversion if transformers uses sentencepiece or Python."""
    found = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(found, Tokenizer):
        # Truncation and padding of an earlier call stay in the object.
        found.no_truncation()
        found.no_padding()
        return found
    try:
        return _converted(tokenizer)
    except Exception as error:  # each converter raises its own
        reason = one_line(str(error), 160).rstrip(".")
        raise UserError(
            f"The model's tokenizer ({type(tokenizer).__name__}) cannot be converted: {reason}.",
            "Take a version of the model that has a tokenizer.json.",
        ) from error


@functools.lru_cache(maxsize=1)
def _converted(tokenizer: Any) -> Tokenizer:
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    converted: Tokenizer = convert_slow_tokenizer(tokenizer)
    return converted


def stop_token_ids(
    generation_config: Any, tokenizer: Any, template: str | None = None, check: Callable[[], None] | None = None
) -> list[int]:
    """The tokens that end an answer, without duplicates.

    They come from the generation configuration, the tokenizer, and our own template. If the chat template ends answers
    with another token, that token is added.

    Args:
        generation_config: The model's transformers generation configuration, if any.
        tokenizer: The model's tokenizer.
        template: A chat template instead of the tokenizer's own.
        check: As for :class:`Encoder`.

    Raises:
        UserError: As :class:`Encoder`.
    """
    found: list[int] = []
    configured = getattr(generation_config, "eos_token_id", None)
    for value in (configured, tokenizer.eos_token_id):
        for token in value if isinstance(value, (list, tuple)) else [value]:
            if token is not None and token not in found:
                found.append(int(token))
    ours = as_model_tokenizer(tokenizer, found)
    with _bounded("a conversation", check):
        return stops_of(ours, _chat_template(ours, template))


def _chat_template(tokenizer: ModelTokenizer, source: str | None, now: datetime | None = None) -> ChatTemplate | None:
    """The template of a source, or the model's own."""
    if source is None:
        return tokenizer.own_template(now)
    return ChatTemplate(source, tokenizer.special_tokens, now=now)
