"""A row as a chat template shows it to the model, for people who choose a template or write one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.data.conversation import Example, Message, RowError
from core.errors import UserError
from core.template.mask import MaskedRow, Masker, Supervise
from core.template.render import ChatTemplate, template_line
from core.template.tokenizer import ModelTokenizer

#: Shown where there is no row of a conversation: two questions, so that what stands between turns is seen too.
SAMPLE = Example(
    messages=(
        Message("user", "What is the capital of France?"),
        Message("assistant", "Paris."),
        Message("user", "And of Italy?"),
        Message("assistant", "Rome."),
    )
)

#: The answers of a preference pair, as people call them.
PAIR = ("better", "worse")
#: A piece of text that no tokenizer has cut.
_PIECE = re.compile(r"\S{1,40}[^\S\n]*\n?|\s")
#: Stand for the special tokens of a model that is not at hand.
_STAND_INS = {name: f"<{name}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}


@dataclass(frozen=True)
class PreviewToken:
    """One token of a row, or a piece of its text where there is no tokenizer."""

    text: str
    learned: bool = False
    special: bool = False
    prompt: bool = False
    """Whether it is of the generation prompt, with which inference lets the model begin an answer."""


@dataclass(frozen=True)
class PreviewRow:
    """Tokens that the model sees at once."""

    tokens: tuple[PreviewToken, ...]
    cut: int | None = None
    """Where the greatest length ends it."""
    answer: str = ""
    """Which answer of a preference pair it ends with: one of :data:`PAIR`; empty for other rows."""


@dataclass(frozen=True)
class Preview:
    """A row as a template shows it."""

    rows: tuple[PreviewRow, ...] = ()
    """Several, where the template shows earlier turns differently, and of a preference pair both answers; without
    anything learned, where it is refused."""
    generation_prompt: str = ""
    problem: str = ""
    """Why the template cannot be used for the row, one sentence that may quote the template: sanitize it."""
    line: int | None = None
    """The line of the template that the problem comes from, from 1, where that is known."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens that enter the loss."""
        return sum(token.learned for row in self.rows for token in row.tokens)


def preview_template(
    source: str,
    example: Example,
    tokenizer: ModelTokenizer | None = None,
    *,
    supervise: Supervise = "assistant",
    allow_special: bool = False,
    end_answers: bool = False,
    max_length: int | None = None,
) -> Preview:
    """Show a conversation through a template; never raises for what is in either.

    Args:
        source: The Jinja template.
        example: A conversation.
        tokenizer: The model's; without it the text is shown with nothing learned, special tokens as their names.
        supervise: As in :class:`~core.template.mask.Masker`.
        allow_special: As there.
        end_answers: As there.
        max_length: As there.
    """
    template = ChatTemplate(source, tokenizer.special_tokens if tokenizer is not None else _STAND_INS)
    try:
        template.check()
    except UserError as error:
        return Preview(problem=error.message, line=template_line(error))
    prompt = generation_prompt(template, [turn.fields() for turn in example.prompt], example.tools)
    if tokenizer is None:
        return replace(_as_text(template, example), generation_prompt=prompt)
    masker = Masker(
        tokenizer,
        template,
        supervise,
        allow_special=allow_special,
        end_answers=end_answers,
        max_length=max_length,
    )
    result = masker.mask([example])[0]
    if isinstance(result, MaskedRow):
        names = PAIR if result.rejected is not None else ("",)
        named = zip(names, result.sequences, strict=True)
        rows = tuple(_row(part, tokenizer, prompt, name) for name, sequence in named for part in sequence.rows)
        return Preview(rows, prompt)
    shown = _as_text(template, example, tokenizer)
    return Preview(shown.rows, prompt, result.message, template_line(result))


def generation_prompt(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """What a template adds to messages for the model to begin its answer; empty where it adds nothing of its own."""
    try:
        shown = template.render(messages, tools=tools)
        asked = template.render(messages, tools=tools, add_generation_prompt=True)
    except RowError:
        return ""
    return asked[len(shown) :] if asked.startswith(shown) else ""


def _row(row: MaskedRow, tokenizer: ModelTokenizer, prompt: str, answer: str) -> PreviewRow:
    texts = tokenizer.token_texts(row.ids)
    prompts = _prompt_places(texts, row.supervised, prompt)
    return PreviewRow(
        tuple(
            PreviewToken(text, bool(learned), token in tokenizer.special_ids, place in prompts)
            for place, (token, learned, text) in enumerate(zip(row.ids, row.supervised, texts, strict=True))
        ),
        row.cut,
        answer,
    )


def _prompt_places(texts: Sequence[str], supervised: bytearray, prompt: str) -> set[int]:
    """The tokens of the generation prompt before each stretch that is learned."""
    found: set[int] = set()
    # Some tokenizers write a space before a word that has none in the text.
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
    """The whole conversation with nothing learned, as tokens or, without a tokenizer, in pieces."""
    answers = zip(PAIR, (example.chosen, example.rejected), strict=True) if example.is_preference else (("", ()),)
    rows = []
    for name, answer in answers:
        messages = [turn.fields() for turn in (*example.messages, *answer)]
        try:
            text = template.render(messages, tools=example.tools)
        except RowError as error:
            return Preview(problem=error.message, line=template_line(error))
        rows.append(PreviewRow(tuple(_pieces(text, tokenizer)), answer=name))
    return Preview(tuple(rows))


def _pieces(text: str, tokenizer: ModelTokenizer | None) -> Iterator[PreviewToken]:
    if tokenizer is None:
        yield from (PreviewToken(piece) for piece in _PIECE.findall(text))
        return
    ids = tokenizer.encode([text.encode("utf-8", "replace").decode()])[0]
    for token, shown in zip(ids, tokenizer.token_texts(ids), strict=True):
        yield PreviewToken(shown, special=token in tokenizer.special_ids)
