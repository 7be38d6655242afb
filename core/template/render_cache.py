"""Render cache: conversations of the same shape are rendered once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.conversation import Message, RowError
from core.template.answer_turns import RowText, group_turns, read_turn
from core.template.reasoning import REASONING_END
from core.template.render import ChatTemplate
from core.template.trace import FIRST_MARK, Assumption, InspectedError, TracedTemplate, holds, placeholder

_SHAPES = 1024
#: Longer conversations are rendered individually; few have the same shape.
_LONGEST = 64
_MARKS = re.compile("([\U00100000-\U0010fff0])")


@dataclass(frozen=True)
class _RowShape:
    """Text of a row with placeholders for the contents of messages."""

    parts: tuple[str | int, ...]
    bounds: tuple[int, ...]
    """Indices of the parts at which an answer begins or ends, alternating."""

    def fill(self, contents: Sequence[str]) -> RowText:
        pieces = [part if isinstance(part, str) else contents[part] for part in self.parts]
        positions, length, done = [], 0, 0
        for bound in self.bounds:
            for piece in pieces[done:bound]:
                length += len(piece)
            done = bound
            positions.append(length)
        return RowText("".join(pieces), tuple(zip(positions[::2], positions[1::2], strict=True)))


@dataclass(frozen=True)
class _Shape:
    rows: tuple[_RowShape, ...]
    assumptions: tuple[Assumption, ...]


class Shapes:
    """Renders conversations by filling contents into a cached rendering of their roles.

    Args:
        template: The chat template.
        stops: Pattern of the stop tokens' texts.
    """

    def __init__(self, template: ChatTemplate, stops: re.Pattern[str]) -> None:
        self._traced = TracedTemplate(template)
        self._stops = stops
        self._known: dict[tuple[tuple[str, ...], tuple[int, ...]], _Shape | None] = {}

    def rows(self, turns: Sequence[Message], wanted: tuple[int, ...]) -> list[RowText] | None:
        """Sequences of text of a conversation, or None if it must be rendered individually.

        Args:
            turns: The conversation.
            wanted: The assistant's messages that are trained on.
        """
        if len(turns) > _LONGEST:
            return None
        for turn in turns:
            if turn.reasoning or turn.tool_calls or turn.name or turn.tool_call_id:
                return None
        key = (tuple([turn.role for turn in turns]), wanted)
        if key not in self._known:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            self._known[key] = self._trace(*key)
        shape = self._known[key]
        if shape is None:
            return None
        contents = [turn.content for turn in turns]
        if any(REASONING_END in contents[index] for index in wanted):
            # An answer with reasoning in it may not fit its prompt.
            return None
        # A blank message may be left out as a whole, which only a real rendering shows.
        if not all(content and not content.isspace() for content in contents):
            return None
        if not all(holds(assumption, contents) for assumption in shape.assumptions):
            return None
        return [row.fill(contents) for row in shape.rows]

    def _trace(self, roles: tuple[str, ...], wanted: tuple[int, ...]) -> _Shape | None:
        assumptions: set[Assumption] = set()

        def render(messages: Sequence[dict[str, Any]], generation_prompt: bool) -> str:
            return self._traced.render(messages, generation_prompt, assumptions)

        messages = [{"role": role, "content": placeholder(number)} for number, role in enumerate(roles)]
        try:
            turns = [read_turn(render, messages, index, self._stops, opaque=True) for index in wanted]
        except (InspectedError, RowError):
            return None
        return _Shape(tuple(_shape(row) for row in group_turns(turns)), tuple(sorted(assumptions, key=repr)))


def _shape(row: RowText) -> _RowShape:
    parts: list[str | int] = []
    bounds: list[int] = []
    position = 0
    for edge in (*(edge for span in row.spans for edge in span), len(row.text)):
        for number, part in enumerate(_MARKS.split(row.text[position:edge])):
            if part:
                parts.append(ord(part) - FIRST_MARK if number % 2 else part)
        bounds.append(len(parts))
        position = edge
    return _RowShape(tuple(parts), tuple(bounds[:-1]))
