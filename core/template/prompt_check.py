"""Prompt completeness check: reports parts of a prompt that a chat template leaves out, which is not an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.conversation import Example, Message, RowError
from core.template.render import ChatTemplate

#: Replaces a text, to test whether it is rendered; letters alone, so that no escaping changes it.
_PROBE = "qzlocaltuneprobe"
#: Cached situations, and the messages of each that are compared.
_REMEMBERED, _LONGEST = 1024, 64

_Situation = tuple[tuple[str, ...], tuple[bool, ...], bool]


class PromptCheck:
    """Reports parts of prompts that a template leaves out, checked once for all rows of the same roles.

    Args:
        template: The chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known: dict[_Situation, str] = {}

    def left_out(self, example: Example) -> str:
        """Part of a conversation's prompt that is not rendered, in a sentence; empty if all is."""
        turns = (*example.messages, *example.chosen)
        looked_at = turns[:_LONGEST]
        situation = (
            tuple([turn.role for turn in looked_at]),
            tuple([bool(turn.tool_calls) or not turn.content.strip() for turn in looked_at]),
            bool(example.tools),
        )
        if situation not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[situation] = self._look(looked_at, example.tools)
        return self._known[situation]

    def _look(self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        asked = turns[:last]
        messages = [turn.fields() for turn in asked]
        parts = []
        if tools and not self._shows(messages, [_with_probe(tool) for tool in tools]):
            parts.append("the list of tools")
        for index, turn in enumerate(asked):
            if turn.role == "assistant" or not turn.content.strip():
                continue
            probed = [*messages[:index], {**messages[index], "content": _PROBE}, *messages[index + 1 :]]
            if not self._shows(probed, tools):
                parts.append(
                    "the system message" if turn.role == "system" else f"message {index + 1}, the {turn.role}'s"
                )
        return f"The chat template leaves out {' and '.join(parts)}." if parts else ""

    def _shows(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bool:
        try:
            return _PROBE in self._template.render(messages, tools=tools, add_generation_prompt=True).casefold()
        except RowError:
            # The template refuses the message, for the probe or for its real text, rather than leaving it out.
            return True


def _with_probe(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool whose name and description are the probe."""
    changed = dict(tool)
    for key, value in tool.items():
        if key in ("name", "description"):
            changed[key] = _PROBE
        elif key == "function" and isinstance(value, Mapping):
            changed[key] = _with_probe(value)
    return changed
