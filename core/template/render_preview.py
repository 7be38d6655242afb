"""Render previews: rows rendered and tokenized for display while a template is chosen or written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.data.conversation import Example, RowError
from core.errors import UserError
from core.template.jinja_sandbox import TemplateTimeError
from core.template.preview import MOST_SHOWN, PAIR, Preview, PreviewRow, PreviewToken
from core.template.render import ChatTemplate, reads_variable, template_line, with_variables
from core.template.settings import MaskSettings
from core.template.tokenizer import MaskedRow, ModelTokenizer
from core.units import format_count

_DEFAULTS = MaskSettings("")
#: A piece of text, for previews without a tokenizer.
_PIECE = re.compile(r"\S{1,40}[^\S\n]*\n?|\s")
#: Placeholders for the special tokens of a model that is not on this machine.
_STAND_INS = {name: f"<{name}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}


def preview_template(
    source: str, example: Example, tokenizer: ModelTokenizer | None = None, settings: MaskSettings = _DEFAULTS
) -> Preview:
    """Render a conversation with a template for display; never raises for errors in either.

    Args:
        source: The Jinja template.
        example: A conversation.
        tokenizer: Tokenizer of the model; without it no tokens are supervised, and special tokens appear as names.
        settings: Settings of tokenization and loss mask, whose model and template are ignored, as are variables that
            the template does not read.
    """
    read = tuple((name, value) for name, value in settings.variables if reads_variable(source, name))
    template = ChatTemplate(
        with_variables(source, dict(read)), tokenizer.special_tokens if tokenizer is not None else _STAND_INS
    )
    try:
        template.check()
    except UserError as error:
        return Preview(problem=error.message, line=template_line(error))
    try:
        prompt = generation_prompt(template, [turn.fields() for turn in example.prompt], example.tools)
        if tokenizer is None:
            return replace(_as_text(template, example), generation_prompt=prompt)
        result = replace(settings, template=source, variables=read).masker(tokenizer).mask([example])[0]
        if isinstance(result, MaskedRow):
            return Preview(masked_rows(result, tokenizer, prompt), prompt)
        shown = _as_text(template, example, tokenizer)
    except TemplateTimeError as error:
        return Preview(problem=error.message)
    return Preview(shown.rows, prompt, result.message, template_line(result))


def masked_rows(masked: MaskedRow, tokenizer: ModelTokenizer, prompt: str = "") -> tuple[PreviewRow, ...]:
    """All training sequences of a row, for display; the better answer of a preference pair comes first.

    Args:
        masked: The row.
        tokenizer: Tokenizer of its tokens.
        prompt: Generation prompt to mark before supervised tokens; empty to mark nothing.
    """
    names = PAIR if masked.rejected is not None else ("",)
    named = zip(names, masked.sequences, strict=True)
    return tuple(_row(part, tokenizer, prompt, name) for name, sequence in named for part in sequence.rows)


def generation_prompt(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Generation prompt that a template appends to messages; empty if it appends nothing."""
    try:
        shown = template.render(messages, tools=tools)
        asked = template.render(messages, tools=tools, add_generation_prompt=True)
    except RowError:
        return ""
    return asked[len(shown) :] if asked.startswith(shown) else ""


def _row(row: MaskedRow, tokenizer: ModelTokenizer, prompt: str, answer: str) -> PreviewRow:
    ids, supervised = row.input_ids[:MOST_SHOWN], row.supervised[:MOST_SHOWN]
    texts = tokenizer.token_texts(ids)
    prompts = _prompt_places(texts, supervised, prompt)
    shown = [
        PreviewToken(text, bool(learned), token in tokenizer.special_ids, place in prompts)
        for place, (token, learned, text) in enumerate(zip(ids, supervised, texts, strict=True))
    ]
    return _preview_row(shown, len(row), row.supervised_count, row.cut, answer)


def _preview_row(
    shown: Sequence[PreviewToken], length: int, learned: int = 0, cut: int | None = None, answer: str = ""
) -> PreviewRow:
    """A row with its first tokens and, as a last token, the number of the rest."""
    further = length - len(shown)
    end = (PreviewToken(f"\n… and {format_count(further)} more tokens"),) if further > 0 else ()
    return PreviewRow((*shown, *end), length, learned, cut, answer)


def _prompt_places(texts: Sequence[str], supervised: bytearray, prompt: str) -> set[int]:
    """Positions of the generation prompt's tokens before each supervised span."""
    found: set[int] = set()
    # Some tokenizers show a space before words without one.
    wanted = prompt.replace(" ", "")
    if not wanted:
        return found
    for place, learned in enumerate(supervised):
        if not learned or (place and supervised[place - 1]):
            continue
        begin, text = place, ""
        while begin and len(text) < len(wanted) and not supervised[begin - 1]:
            begin -= 1
            text = texts[begin].replace(" ", "") + text
        if text.endswith(wanted):
            found.update(range(begin, place))
    return found


def _as_text(template: ChatTemplate, example: Example, tokenizer: ModelTokenizer | None = None) -> Preview:
    """The whole conversation without supervised tokens, as tokens, or in pieces without a tokenizer."""
    answers = zip(PAIR, (example.chosen, example.rejected), strict=True) if example.is_preference else (("", ()),)
    rows = []
    for name, answer in answers:
        messages = [turn.fields() for turn in (*example.messages, *answer)]
        try:
            text = template.render(messages, tools=example.tools)
        except RowError as error:
            return Preview(problem=error.message, line=template_line(error))
        rows.append(_as_row(text, tokenizer, name))
    return Preview(tuple(rows))


def _as_row(text: str, tokenizer: ModelTokenizer | None, answer: str) -> PreviewRow:
    if tokenizer is None:
        pieces = _PIECE.findall(text)
        return _preview_row([PreviewToken(piece) for piece in pieces[:MOST_SHOWN]], len(pieces), answer=answer)
    ids = tokenizer.encode([text.encode("utf-8", "replace").decode()])[0]
    shown = zip(ids[:MOST_SHOWN], tokenizer.token_texts(ids[:MOST_SHOWN]), strict=True)
    tokens = [PreviewToken(piece, special=token in tokenizer.special_ids) for token, piece in shown]
    return _preview_row(tokens, len(ids), answer=answer)
