"""The shape of a chat template: its texts around messages, found by rendering probe conversations.

No template is known beforehand; :func:`core.worker.export.ollama.template.prove` decides whether a shape is complete.
Each message of a probe conversation is a unique character, so all text between two of them is the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from core.data.conversation import RowError
from core.template.render import ChatTemplate
from core.text import one_line

Trim = Literal["keep", "trim", "ltrim", "rtrim"]
"""Treatment of the white space around a message."""

#: The probe messages: the system's, then user and assistant in turns.
MARKS = tuple(chr(0x10FFE0 + number) for number in range(8))
SYSTEM = MARKS[0]
MARK = re.compile(f"([{MARKS[0]}-{MARKS[-1]}])")
#: White space put around a probe message.
_PAD = " \n\t\n "


class NotCarriedError(Exception):
    """A construct of a chat template without an equivalent in a Go template.

    Args:
        construct: Its effect, as the rest of a sentence that begins with "The chat template".
    """

    def __init__(self, construct: str) -> None:
        super().__init__(construct)
        self.construct = construct


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


class Renderer:
    """Renderer of conversations, without the token that the reader of a GGUF file puts before each prompt.

    Args:
        template: The chat template.
        bos: The text of the token at the beginning of a sequence; empty if there is none.
        adds_bos: True if the reader of the GGUF file adds that token.
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

    def read(self, messages: Sequence[dict[str, str]], *, may_ignore_system: bool = False) -> Pieces:
        """Texts and messages in the order of the rendering, beginning and ending with a text.

        Raises:
            NotCarriedError: If the template refuses the conversation, leaves a message out, or has one twice.
        """
        try:
            text = self.render(messages)
        except RowError as error:
            reason = error.message.rpartition(": ")[2].rstrip(".")
            raise NotCarriedError(f"refuses a plain conversation: {reason}") from error
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
        """Treatment of white space around a message; ``keep`` if it is none of the four."""
        padded = [
            {**message, "content": _PAD + mark + _PAD} if message["content"] == mark else message
            for message in messages
        ]
        try:
            found = self.render(padded)
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
    """True if a template writes the date or the time of day."""
    texts = set()
    for now in (datetime(2001, 2, 3, 4, 5, 6), datetime(2019, 11, 28, 17, 48, 39)):
        other = ChatTemplate(template.source, template.special_tokens, now=now)
        for system in (None, SYSTEM):
            try:
                texts.add((system, other.render(conversation(2, system=system), add_generation_prompt=True)))
            except RowError:
                texts.add((system, ""))
    return len(texts) > 2


@dataclass(frozen=True)
class SystemText:
    """Place of the system prompt in the text before another message."""

    trim: Trim


Part = str | SystemText
Parts = tuple[Part, ...]


@dataclass(frozen=True)
class UserPlace:
    """Place of a user's message in a conversation; the texts before it may depend on that."""

    has_system: bool
    """The conversation begins with a system prompt."""
    is_first: bool
    """It is the first message of the user."""
    is_last: bool
    """It is the last message of the conversation."""


@dataclass(frozen=True)
class Reasoning:
    """Marks around the reasoning before an answer."""

    opening: str
    closing: str
    in_history: bool
    """Earlier answers keep their reasoning."""


@dataclass(frozen=True)
class Shape:
    """The texts of a chat template."""

    system: Literal["turn", "inside", "ignored", "refused"]
    """Effect of a system prompt: a turn before the rest, a part of the text before a user's message, nothing, or an
    error.
    """
    empty_system_is_none: bool = False
    """An empty system prompt has the same effect as none."""
    later_system: str | None = None
    """The text before a system prompt after the first answer; None if that is not a turn like the first."""
    head: str = ""
    """Beginning of a conversation without a system prompt."""
    system_before: str = ""
    system_after: str = ""
    user_before: Mapping[UserPlace, Parts] = field(default_factory=dict)
    user_after: str = ""
    assistant_before: str = ""
    assistant_after: str = ""
    opening: str = ""
    """Text after the last message, so that the assistant answers."""
    system_trim: Trim = "keep"
    """White space around a message."""
    user_trims: Mapping[UserPlace, Trim] = field(default_factory=dict)
    assistant_trim: Trim = "keep"
    reasoning: Reasoning | None = None


def find_shape(renderer: Renderer) -> Shape:
    """The shape of a chat template.

    Raises:
        NotCarriedError: If it has none.
    """
    plain = [renderer.read(conversation(turns)) for turns in (1, 2, 3)]
    system, with_system = _read_system(renderer)
    befores: dict[UserPlace, Parts] = {}
    answers: set[Parts] = set()
    openings: set[Parts] = set()
    user_trims: dict[UserPlace, Trim] = {}
    trims: dict[str, Trim] = {}
    for conversations, has_system in ((plain, False), (with_system, True)):
        for pieces in conversations:
            for before, role, place, trim in _turns(pieces, has_system):
                if role == "user":
                    user_trims.setdefault(place, trim)
                    if befores.setdefault(place, before) != before:
                        raise NotCarriedError("writes other texts between turns the longer the conversation is")
                elif role == "assistant":
                    answers.add(before)
                else:
                    openings.add(before)
            for piece in pieces:
                if isinstance(piece, Content):
                    # The proof finds white space that is kept in some places only.
                    trims.setdefault(piece.role, piece.trim)
    assistant_before, opening = _only(answers, "an answer"), _only(openings, "the last message")
    shape = Shape(
        system,
        user_before=befores,
        assistant_before=assistant_before,
        opening=opening,
        system_trim=trims.get("system", "keep"),
        user_trims=user_trims,
        assistant_trim=trims["assistant"],
    )
    shape = _with_ends(shape, renderer)
    shape = _with_head(shape, renderer)
    return replace(shape, reasoning=_find_reasoning(renderer, shape))


def _read_system(renderer: Renderer) -> tuple[Literal["turn", "inside", "ignored", "refused"], list[Pieces]]:
    """Effect of a system prompt, and the conversations that have it."""
    try:
        renderer.render(conversation(1, system=SYSTEM))
    except RowError:
        return "refused", []
    found = [renderer.read(conversation(turns, system=SYSTEM), may_ignore_system=True) for turns in (1, 2, 3)]
    shown = [any(isinstance(piece, Content) and piece.mark == SYSTEM for piece in pieces) for pieces in found]
    if not any(shown):
        return "ignored", found
    if not all(shown):
        raise NotCarriedError("leaves the system prompt out of some conversations")
    leads = all(isinstance(pieces[1], Content) and pieces[1].mark == SYSTEM for pieces in found)
    return ("turn" if leads else "inside"), found


def _turns(pieces: Pieces, has_system: bool) -> Iterator[tuple[Parts, str, UserPlace, Trim]]:
    """Text before each message, with its role, place and white space; the last one, without a role, ends the prompt."""
    before: list[Part] = []
    last = [piece for piece in pieces if isinstance(piece, Content)][-1]
    is_first = True
    for piece in pieces:
        if isinstance(piece, str):
            before.append(piece)
        elif piece.role == "system":
            before.append(SystemText(piece.trim))
        else:
            yield tuple(filter(None, before)), piece.role, UserPlace(has_system, is_first, piece is last), piece.trim
            before, is_first = [], False
    yield tuple(filter(None, before)), "", UserPlace(has_system, is_first, False), "keep"


def _only(found: set[Parts], place: str) -> str:
    if len(found) > 1:
        raise NotCarriedError(f"writes other texts around {place}, depending on where it is in the conversation")
    parts = next(iter(found))
    if any(isinstance(part, SystemText) for part in parts):
        raise NotCarriedError(f"writes the system prompt around {place}")
    return "".join(part for part in parts if isinstance(part, str))


def _with_ends(shape: Shape, renderer: Renderer) -> Shape:
    """The shape with its texts cut where a turn ends, so that a conversation may end there."""
    user_after = _tail(renderer, conversation(1))
    if not (shape.assistant_before.startswith(user_after) and shape.opening.startswith(user_after)):
        user_after = ""
    assistant_after = _tail(renderer, [*conversation(1), {"role": "assistant", "content": MARKS[2]}])
    later = [parts for place, parts in shape.user_before.items() if not place.is_first]
    if not all(_starts_with(parts, assistant_after) for parts in later):
        assistant_after = ""
    befores = {
        place: parts if place.is_first else _without_start(parts, assistant_after)
        for place, parts in shape.user_before.items()
    }
    return replace(
        shape,
        user_after=user_after,
        assistant_after=assistant_after,
        user_before=befores,
        assistant_before=shape.assistant_before[len(user_after) :],
        opening=shape.opening[len(user_after) :],
    )


def _tail(renderer: Renderer, messages: Sequence[Mapping[str, str]]) -> str:
    """Text after the last message of a conversation that is no prompt; empty if it cannot be rendered."""
    try:
        return renderer.render(messages, prompt=False).rpartition(messages[-1]["content"])[2]
    except RowError:
        return ""


def _starts_with(parts: Parts, text: str) -> bool:
    return not text or (bool(parts) and isinstance(parts[0], str) and parts[0].startswith(text))


def _without_start(parts: Parts, text: str) -> Parts:
    if not text or not isinstance(parts[0], str):
        return parts
    return tuple(filter(None, (parts[0][len(text) :], *parts[1:])))


def _with_head(shape: Shape, renderer: Renderer) -> Shape:
    """The shape with the beginning of a conversation apart from the first turn, and the system prompt as a turn."""
    befores = dict(shape.user_before)
    base = befores[UserPlace(False, False, True)]
    usual = base[0] if len(base) == 1 and isinstance(base[0], str) else ""

    firsts = {parts for place, parts in befores.items() if place.is_first and not place.has_system}
    head = ""
    if len(firsts) == 1:
        head = _before(next(iter(firsts)), usual)
        for last in (True, False):
            befores[UserPlace(False, True, last)] = _without_start(befores[UserPlace(False, True, last)], head)
    shape = replace(shape, head=head, user_before=befores)
    if shape.system == "ignored":
        # As without a system prompt, so that nothing depends on it.
        befores |= {replace(place, has_system=True): parts for place, parts in befores.items() if not place.has_system}
        return replace(shape, user_before=befores)
    if shape.system == "refused":
        return shape
    shape = replace(shape, empty_system_is_none=_is_none(renderer))
    leading = {parts for place, parts in befores.items() if place.has_system and place.is_first}
    if shape.system != "turn" or len(leading) > 1:
        return replace(shape, system="inside")
    parts = next(iter(leading))
    number = next(number for number, part in enumerate(parts) if isinstance(part, SystemText))
    before = "".join(part for part in parts[:number] if isinstance(part, str))
    after = "".join(part for part in parts[number + 1 :] if isinstance(part, str))
    system_after = after[: -len(usual)] if usual and after.endswith(usual) else ("" if usual else after)
    for last in (True, False):
        befores[UserPlace(True, True, last)] = tuple(filter(None, (after[len(system_after) :],)))
    shape = replace(shape, system_before=before, system_after=system_after)
    return replace(shape, later_system=_find_later(renderer, shape, usual))


def _before(parts: Parts, usual: str) -> str:
    """Text of a first turn before the text of every turn."""
    text = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else ""
    return text[: len(text) - len(usual)] if text.endswith(usual) else ""


def _is_none(renderer: Renderer) -> bool:
    try:
        return renderer.render(conversation(2, system="")) == renderer.render(conversation(2))
    except RowError:
        return False


def _find_later(renderer: Renderer, shape: Shape, usual: str) -> str | None:
    """The text before a system prompt in the middle of a conversation, if it is a turn like the first one."""
    middle = [*conversation(2)[:2], {"role": "system", "content": SYSTEM}, *conversation(2)[2:]]
    try:
        pieces = renderer.read(middle)
    except NotCarriedError:
        return None
    marks = [piece.mark for piece in pieces if isinstance(piece, Content)]
    if marks != [message["content"] for message in middle]:
        return None
    before, after = pieces[4], pieces[6]
    if not isinstance(before, str) or not before.startswith(shape.assistant_after):
        return None
    return before[len(shape.assistant_after) :] if after == shape.system_after + usual else None


def _find_reasoning(renderer: Renderer, shape: Shape) -> Reasoning | None:
    """Marks of reasoning before the last answer, and their place in earlier answers."""
    thought = MARKS[7]
    answered = [*conversation(1), {"role": "assistant", "content": MARKS[2], "reasoning_content": thought}]
    try:
        split = MARK.split(renderer.render(answered, prompt=False))
        asked = MARK.split(renderer.render([*answered, *conversation(2)[2:]]))
    except RowError:
        return None
    if [mark for mark in split[1::2] if mark != MARKS[1]] != [thought, MARKS[2]]:
        return None
    begins = shape.user_after + shape.assistant_before
    opening, closing = split[-5], split[-3]
    if not opening.startswith(begins) or not opening[len(begins) :].strip() or not closing.strip():
        return None
    return Reasoning(opening[len(begins) :], closing, thought in asked)
