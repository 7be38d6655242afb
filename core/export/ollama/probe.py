"""Probe conversations: rendered by a chat template, to see what it writes around messages.

Every message is a unique character, so that what is between two of them is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from core.data.conversation import RowError
from core.template.render import ChatTemplate
from core.text import one_line

Trim = Literal["keep", "trim", "ltrim", "rtrim"]
"""What a template does to the white space around a message."""

#: The probe messages: the system's, then those of user and assistant in turns.
MARKS = tuple(chr(0x10FFE0 + number) for number in range(8))
SYSTEM = MARKS[0]
MARK = re.compile(f"([{MARKS[0]}-{MARKS[-1]}])")
#: White space put around a probe message.
_PAD = " \n\t\n "


class NotCarriedError(Exception):
    """A construct of a chat template that has no equal in a Go template.

    Args:
        construct: What it does, as the rest of a sentence that begins with "The chat template".
    """

    def __init__(self, construct: str) -> None:
        super().__init__(construct)
        self.construct = construct


class Renderer:
    """Renders conversations, without the token that the reader of a GGUF file puts before each prompt.

    Args:
        template: The chat template.
        bos: The text of the token at the beginning of a sequence; empty if there is none.
        adds_bos: Whether the reader of the GGUF file adds that token.
    """

    def __init__(self, template: ChatTemplate, bos: str, adds_bos: bool) -> None:
        self.template = template
        self._bos = bos if adds_bos else ""
        self._adds_bos = adds_bos

    def render(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = True) -> str:
        """The text of a conversation, with the beginning of the assistant's turn if it is a prompt.

        Raises:
            RowError: If the template refuses it.
            NotCarriedError: If it does not begin with the token that the reader adds.
        """
        text = self.template.render(messages, add_generation_prompt=prompt)
        if not self._adds_bos:
            return text
        if not self._bos or not text.startswith(self._bos):
            token = f"the token {one_line(self._bos, 40)}" if self._bos else "the token"
            raise NotCarriedError(f"does not begin with {token} that the GGUF file's tokenizer adds to every prompt")
        return text[len(self._bos) :]


def conversation(turns: int, *, system: str | None = None) -> list[dict[str, str]]:
    """A conversation with ``turns`` questions, the last one without an answer."""
    found = [] if system is None else [{"role": "system", "content": system}]
    for number in range(2 * turns - 1):
        found.append({"role": "assistant" if number % 2 else "user", "content": MARKS[number + 1]})
    return found


@dataclass(frozen=True)
class Content:
    """A message in a rendering."""

    role: str
    mark: str
    trim: Trim


Pieces = list["str | Content"]


class Probe:
    """Reads what is around the messages of a conversation."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def read(self, messages: Sequence[dict[str, str]], *, may_ignore_system: bool = False) -> Pieces:
        """Texts and messages in the order of the rendering, beginning and ending with a text.

        Raises:
            NotCarriedError: If the template refuses the conversation, leaves a message out, or has one twice.
        """
        try:
            text = self.renderer.render(messages)
        except RowError as error:
            raise NotCarriedError(f"refuses a plain conversation: {_reason(error)}") from error
        roles = {message["content"]: message["role"] for message in messages}
        split = MARK.split(text)
        for mark, role in roles.items():
            count = split.count(mark)
            if count == 0 and not (may_ignore_system and mark == SYSTEM):
                raise NotCarriedError(f"leaves out a message of the {role}")
            if count > 1:
                raise NotCarriedError(f"writes a message of the {role} more than once")
        order = [mark for mark in split[1::2] if mark != SYSTEM]
        if order != sorted(order):
            raise NotCarriedError("changes the order of the messages")
        return [
            Content(roles[piece], piece, self._trim(messages, piece, text)) if number % 2 else piece
            for number, piece in enumerate(split)
        ]

    def _trim(self, messages: Sequence[dict[str, str]], mark: str, text: str) -> Trim:
        """What the template does to white space around a message; ``keep`` where that is none of the four."""
        padded = [
            {**message, "content": _PAD + mark + _PAD} if message["content"] == mark else message
            for message in messages
        ]
        try:
            found = self.renderer.render(padded)
        except RowError:
            return "keep"
        before, _, after = text.partition(mark)
        forms: tuple[tuple[Trim, str], ...] = (
            ("keep", _PAD + mark + _PAD),
            ("trim", mark),
            ("ltrim", mark + _PAD),
            ("rtrim", _PAD + mark),
        )
        return next((trim for trim, form in forms if found == before + form + after), "keep")


def writes_date(template: ChatTemplate) -> bool:
    """Whether a template writes the date or the time of day."""
    texts = set()
    for now in (datetime(2001, 2, 3, 4, 5, 6), datetime(2019, 11, 28, 17, 48, 39)):
        other = ChatTemplate(template.source, template.special_tokens, now=now)
        for system in (None, SYSTEM):
            try:
                texts.add((system, other.render(conversation(2, system=system), add_generation_prompt=True)))
            except RowError:
                texts.add((system, ""))
    return len(texts) > 2


def _reason(error: RowError) -> str:
    return error.message.rpartition(": ")[2].rstrip(".")
