"""Stop tokens: from the files of a model, and from the end of answers in its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.conversation import RowError
from core.template.answer_turns import same_length
from core.template.builtin import stop_texts
from core.template.render import ChatTemplate
from core.template.tokenizer import ModelTokenizer

#: Contents of probe messages, to find the text that a template writes around them.
_QUESTION, _ANSWER, _THOUGHT, _NEXT = "\U0010fff1", "\U0010fff2", "\U0010fff3", "\U0010fff4"
_USER = {"role": "user", "content": _QUESTION}


def stop_token_ids(tokenizer: ModelTokenizer, template: ChatTemplate | None = None) -> list[int]:
    """Stop tokens of a model with a template.

    These are the tokens of the tokenizer and of a built-in template. If the template ends answers with a different
    special token, that token is added: without a generation configuration, the files of a model often name only the
    end-of-text token.
    """
    named = [tokenizer.token_id(text) for text in stop_texts(template.source)] if template is not None else []
    known = list(dict.fromkeys([*tokenizer.stop_ids, *(token for token in named if token is not None)]))
    return known if template is None else [*known, *_Ends(tokenizer, template, known).missing()]


class _Ends:
    """Finds the special tokens that a template writes after answers."""

    def __init__(self, tokenizer: ModelTokenizer, template: ChatTemplate, known: Sequence[int]) -> None:
        self._template = template
        self._added = {token.content: number for number, token in tokenizer.added_tokens.items() if token.content}
        self._longest_first = sorted((token for token in self._added if token.strip()), key=len, reverse=True)
        self._special = {token.content for token in tokenizer.added_tokens.values() if token.special}
        self._stops = {text for text in map(tokenizer.token_text, known) if text}

    def missing(self) -> list[int]:
        found: list[str] = []
        for find in (self._after_answer, self._after_call):
            token = find()
            if token is not None and token not in found:
                found.append(token)
                self._stops.add(token)
        if not found:
            found = self._next_turns()
        return [self._added[token] for token in found]

    def _render(self, *messages: dict[str, Any], prompt: bool = False, tools: Sequence[Any] = ()) -> str | None:
        try:
            return self._template.render(messages, tools=tools, add_generation_prompt=prompt)
        except RowError:
            return None

    def _has_stop(self, text: str) -> bool:
        return any(stop in text for stop in self._stops)

    def _after_answer(self) -> str | None:
        """Special token right after an answer of text, unless a known stop token is there.

        A token that also follows the answer when the conversation goes on ends the turn; any other ends the text.
        """
        text = self._render(_USER, _says(_ANSWER))
        if text is None or _ANSWER not in text:
            return None
        after = text.rpartition(_ANSWER)[2]
        longer = self._render(_USER, _says(_ANSWER), {"role": "user", "content": _NEXT}, _says(_NEXT)) or ""
        shared = after[: same_length(after, longer.partition(_ANSWER)[2])]
        token = self._first_token(shared) or self._first_token(after)
        if token is not None and shared.count(token) > 1:
            # It ends parts of the turn as well as the text, so take the last token.
            token = self._last_token(shared)
        if token is None or self._has_stop(shared if self._first_token(shared) else after):
            return None
        # A token between reasoning and answer, or before a call, does not end the turn.
        reasoned = self._render(_USER, {**_says(_ANSWER), "reasoning_content": _THOUGHT})
        for other in (reasoned, self._called(_ANSWER, 1)):
            following = (other or "").rpartition(_QUESTION)[2]
            turn = following[same_length(text.rpartition(_QUESTION)[2], following) :]
            if token in turn[: max(turn.find(_ANSWER), turn.rfind(_call_name(0)), 0)]:
                return None
        return token

    def _after_call(self) -> str | None:
        """Special token that ends a turn with tool calls, unless the turn contains a known stop token."""
        for count in (2, 1):
            text = self._called("", count)
            if text is None:
                continue
            following = text.rpartition(_QUESTION)[2]
            begin = following.find(_call_name(0))
            turn = following[begin:]
            if begin < 0 or self._has_stop(turn):
                return None
            ends = (token for token in self._longest_first if turn.rstrip().endswith(token))
            token = next((token for token in ends if token in self._special), None)
            return token if token is not None and turn.count(token) == 1 else None
        return None

    def _next_turns(self) -> list[str]:
        """Tokens that begin the next turn, for templates that hand over to user and tools with a token each."""
        text = self._render(_USER, _says(_ANSWER))
        if text is None or text.rpartition(_ANSWER)[2].strip() or self._has_stop(text.rpartition(_ANSWER)[2]):
            return []
        prompt, before = self._render(_USER, prompt=True), self._render(_USER)
        opening = "" if prompt is None or before is None else prompt[len(before) :]
        answer = {"role": "tool", "name": _call_name(0), "tool_call_id": "0" * 9, "content": _NEXT}
        found: list[str] = []
        for turn, follow, tools in (
            (_says(_ANSWER), {"role": "user", "content": _NEXT}, []),
            (_calls("", 1, {"q": "y"}), answer, _TOOLS),
        ):
            head = self._render(_USER, turn, tools=tools)
            continued = self._render(_USER, turn, follow, tools=tools)
            if head is None or continued is None or not continued.startswith(head):
                return []
            next_turn = continued[len(head) :].partition(_NEXT)[0].lstrip()
            if self._has_stop(next_turn):
                continue
            token = next((token for token in self._longest_first if next_turn.startswith(token)), None)
            if token is None or token not in self._special or token in opening:
                return []
            found.append(token)
        return list(dict.fromkeys(found))

    def _called(self, content: str, count: int) -> str | None:
        """A rendered turn with calls; arguments are an object, or text if the template expects text."""
        for arguments in ({"q": "y"}, '{"q": "y"}'):
            text = self._render(_USER, _calls(content, count, arguments), tools=_TOOLS)
            if text is not None:
                return text
        return None

    def _last_token(self, text: str) -> str | None:
        """Special token at the end of a text and nowhere else in it, or None."""
        text = text.rstrip()
        token = next((token for token in self._longest_first if text.endswith(token)), None)
        return token if token in self._special and text.count(token) == 1 else None

    def _first_token(self, text: str) -> str | None:
        """Special token at the beginning of a text, or None."""
        text = text.lstrip()
        return next((token for token in self._longest_first if text.startswith(token)), None)


def _says(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _call_name(number: int) -> str:
    return f"find_{'abc'[number]}"


def _calls(content: str, count: int, arguments: dict[str, str] | str) -> dict[str, Any]:
    calls = [
        {"type": "function", "id": f"{number}" * 9, "function": {"name": _call_name(number), "arguments": arguments}}
        for number in range(count)
    ]
    return {**_says(content), "tool_calls": calls}


_PARAMETERS = {"type": "object", "properties": {"q": {"type": "string", "description": "What."}}, "required": ["q"]}
_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": _call_name(number), "description": "Finds.", "parameters": _PARAMETERS}}
    for number in range(2)
]
