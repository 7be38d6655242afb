"""Supervised turns: the assistant's text in a rendered conversation, found by comparing renderings, without markers.

For every assistant turn, compare two renderings: the prompt at inference (the messages before the turn, with the
generation prompt), and the conversation including the turn. The text that the second adds to the first, up to and
including the stop token, is the answer that the model must learn. Nothing is guessed from the text of a template: it
is either read exactly or refused with a reason.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.conversation import RowError
from core.template.reasoning import (
    Block,
    Render,
    Thought,
    after_closed,
    closed_error,
    inside_begun,
    is_shown,
    prompt_block,
    restore_thought,
    text_of,
    thought_of,
)
from core.text import one_line


def check_complete(message: dict[str, Any], thought: Thought | None, said: str, number: int) -> None:
    """Refuse an answer if the template leaves out any part of it.

    Args:
        message: The assistant's message, as passed to the template.
        thought: Its reasoning.
        said: Its rendered text.
        number: Its number, from 1, for the error.

    Raises:
        RowError: ``template_drops``.
    """
    wrong = ""
    visible = text_of(message) if thought is None else thought.visible
    if visible.strip() not in said:
        wrong = "leaves out or changes the text"
    elif thought is not None and not is_shown(thought, said, message):
        late = bool(message.get("tool_calls")) and thought.bare in said
        wrong = "writes a tool call before the reasoning" if late else "leaves out the reasoning"
    else:
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            if str(function.get("name", "")) not in said:
                wrong = "leaves out a tool call"
            elif any(not _is_in(value, said) for value in _leaves(function.get("arguments"))):
                wrong = "leaves out or changes an argument of a tool call"
    if wrong:
        raise RowError("template_drops", f"The chat template {wrong} of message {number}.")


def _leaves(arguments: Any) -> Iterable[Any]:
    """Scalar values in the arguments of a tool call."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            yield arguments
            return
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield key
            yield from _leaves(value) if isinstance(value, (dict, list)) else (value,)
    elif isinstance(arguments, list):
        for value in arguments:
            yield from _leaves(value) if isinstance(value, (dict, list)) else (value,)
    else:
        yield arguments


def _is_in(value: Any, said: str) -> bool:
    """True if a value is in a text, in any form that templates write."""
    if not isinstance(value, str):
        return json.dumps(value) in said or str(value) in said
    if value.strip() in said:
        return True
    for text in (value, value.strip()):
        inner = json.dumps(text)[1:-1]
        readable = json.dumps(text, ensure_ascii=False)[1:-1]
        forms = (inner, readable, json.dumps(inner)[1:-1], json.dumps(readable, ensure_ascii=False)[1:-1])
        if any(form in said for form in (*forms, html.escape(text), html.escape(text, quote=False), repr(text)[1:-1])):
            return True
    return False


#: Content of a probe message, to find the text that a template writes around it.
FOLLOW_UP = "\U0010fffd"

#: Most characters of an excerpt in an error.
_EXCERPT = 30
#: Characters at the end of a prompt searched for a reasoning block.
_PROMPT_END = 100


@dataclass(frozen=True)
class Turn:
    """Text of an assistant turn."""

    index: int
    """Index of its message."""
    prompt: str
    """Prompt at inference."""
    answer: str
    """Text that the model must produce after it, including the stop token."""
    rest: str
    """Text that the template writes after the answer."""
    is_ended: bool = False
    """True if a stop token was appended because the template writes none."""

    @property
    def learned(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.answer

    @property
    def span(self) -> tuple[int, int]:
        """Start and end of the answer."""
        return len(self.prompt), len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class RowText:
    """Text of a row and its supervised spans."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Start and end of each answer, in order; the text before a start is the prompt at inference."""
    inverted: bool = False
    """True if everything but the spans is supervised."""
    last: tuple[int, int] | None = None
    """Span of the last answer of an inverted row, which begins at the end of the generation prompt."""


def read_turn(
    render: Render,
    messages: Sequence[dict[str, Any]],
    index: int,
    stops: re.Pattern[str],
    *,
    opaque: bool = False,
    ending: str = "",
) -> Turn:
    """Prompt before an assistant's message at inference, and the text that the model must produce.

    Args:
        render: Renders messages.
        messages: The conversation.
        index: Index of the assistant's message.
        stops: Pattern of the texts of the stop tokens.
        opaque: True if the contents are placeholders; a turn whose reading would depend on them is refused.
        ending: Text to append to an answer without a stop token; empty to refuse it.

    Raises:
        RowError: ``role_order`` if nothing precedes the message, ``template_rewrites`` or ``template_drops`` if the
            template renders the turn differently than at inference, ``no_reasoning`` if the prompt begins reasoning
            that the message lacks, ``no_stop_token`` if the turn has no stop token.
    """
    if index == 0:
        # Templates do not expect it, and inference has no prompt for it.
        raise RowError("role_order", "The conversation begins with an assistant message.")
    shown = messages[: index + 1]
    thought = None if opaque else thought_of(messages[index])
    prompt, answered = render(messages[:index], True), render(shown, False)
    block = None if thought is None else _block_of(render, shown, prompt)
    if block is not None and block.closed:
        raise closed_error()
    if answered.startswith(prompt):
        tail = answered[len(prompt) :]
    elif opaque:
        tail = _after_last_message(prompt, answered, messages[index - 1]["content"])
    else:
        tail = _go_on(render, shown, prompt, answered, thought, stops)
    if thought is not None:
        tail = restore_thought(thought, tail, messages[index], begun=block is not None)
    is_ended = False
    if (stop := stops.search(tail)) is not None:
        answer, rest = tail[: stop.end()], tail[stop.end() :]
        said = tail[: stop.start()]
    else:
        said, rest = tail, ""
        try:
            answer = tail + _following_stop(render, messages, shown, tail, stops)
        except RowError:
            if not ending:
                raise
            answer, is_ended = tail + ending, True
    check_complete(messages[index], thought, said, index + 1)
    return Turn(index, prompt, answer, rest, is_ended)


def group_turns(turns: Sequence[Turn]) -> list[RowText]:
    """The fewest rows in which every turn is exactly as at inference.

    A template that only appends to its earlier output needs one row. If it renders earlier turns differently once
    later turns follow (reasoning left out, another end of turn), such a turn gets a row of its own that ends with it.
    The row of the last turn comes first, then the others in the order of the conversation.
    """
    rows: list[RowText] = []
    open_turns = list(turns)
    while open_turns:
        last = open_turns.pop()
        within = [turn for turn in open_turns if last.prompt.startswith(turn.learned)]
        open_turns = [turn for turn in open_turns if not last.prompt.startswith(turn.learned)]
        rows.append(RowText(last.learned + last.rest, tuple(turn.span for turn in (*within, last))))
    return [*rows[:1], *reversed(rows[1:])]


# Prompts that are not a prefix of the rendered conversation


def _go_on(
    render: Render,
    shown: Sequence[dict[str, Any]],
    prompt: str,
    answered: str,
    thought: Thought | None,
    stops: re.Pattern[str],
) -> str:
    """Continuation of a prompt that is not a prefix of the rendered conversation.

    Known causes:

    - The template is careless with spaces.
    - It writes something, such as the system message, only before the last message.
    - The prompt opens a reasoning block, inside which the model continues.
    - The prompt opens and closes a reasoning block, after which the model continues.
    - The prompt begins reasoning in words.
    - The message before the answer loses its end of turn once it is answered, or its turn goes on.
    """
    if (tail := _after_same_text(render, shown, prompt, answered)) is not None:
        return tail
    # It may differ only before the last message, which is located by rendering it with another content.
    if (texts := _marked(render, shown, prompt, answered)) is not None:
        with contextlib.suppress(RowError):
            return _after_last_message(*texts, FOLLOW_UP)
    block = _block_of(render, shown, prompt, look_back=_PROMPT_END)
    tail = None if block is None else _after_same_text(render, shown, prompt[: block.start], answered)
    if block is not None and tail is not None:
        content = text_of(shown[-1])
        if not block.closed:
            return inside_begun(block, tail, thought, content)
        if thought is None:
            return after_closed(block, tail, content)
        raise closed_error()
    if (place := _place_of_reasoning(render, shown, prompt)) is not None:
        if thought is not None:
            return answered[place:]
        raise RowError(
            "no_reasoning",
            f"The chat template lets the model begin with its reasoning ({_excerpt_end(prompt)}), "
            "and the answer has none.",
        )
    if (tail := _after_header(render, shown, prompt, answered, stops)) is not None:
        return tail
    same = same_length(prompt, answered)
    raise RowError(
        "template_rewrites",
        f"The chat template's prompt goes on with {_excerpt(prompt[same:])} where the finished answer has "
        f"{_excerpt(answered[same:])}, so the answer does not follow the prompt.",
    )


def _after_header(
    render: Render, shown: Sequence[dict[str, Any]], prompt: str, answered: str, stops: re.Pattern[str]
) -> str | None:
    """Continuation of the prompt after the header of the generation prompt, or None.

    If the rendered conversation has the header too, and lacks only the end of turn before it, the answer follows the
    header. If it has none because the template continues a turn that began with tool calls under the same header, the
    answer follows the message.
    """
    before = render(shown[:-1], False)
    texts = _marked(render, shown, prompt, answered)
    header = prompt[len(before) :] if prompt.startswith(before) else ""
    if texts is None or not header.strip():
        return None
    asked, follow = (text.rpartition(FOLLOW_UP)[2] for text in texts)
    between, found, tail = follow.partition(header)
    if found:
        missing = asked.removesuffix(header).removeprefix(between)
        return tail if stops.fullmatch(missing.strip()) and header not in tail else None
    if header not in before or not answered.startswith(before):
        return None
    spoken = {"role": "assistant", "content": FOLLOW_UP}
    begun = render([*shown[:-1], spoken], False)[len(before) :].lstrip()
    return answered[len(before) :] if begun.startswith(FOLLOW_UP) else None


def _marked(render: Render, shown: Sequence[dict[str, Any]], prompt: str, answered: str) -> tuple[str, str] | None:
    """Prompt and rendered conversation with a mark as content of the message before the answer.

    None if the template writes more of that message than its content.
    """
    content = text_of(shown[-2])
    marked = [*shown[:-2], {**shown[-2], "content": FOLLOW_UP}, shown[-1]]
    try:
        texts = render(marked[:-1], True), render(marked, False)
    except RowError:
        return None
    shapes = (content, content.strip())
    same = any(tuple(text.replace(FOLLOW_UP, shape) for text in texts) == (prompt, answered) for shape in shapes)
    return texts if same else None


def _after_last_message(prompt: str, answered: str, content: str) -> str:
    """Continuation of the prompt in a rendered conversation, located by the content of the last message.

    Raises:
        RowError: ``template_rewrites`` if the two differ after that content.
    """
    after, follow = prompt.rpartition(content)[2], answered.rpartition(content)[2]
    if prompt.count(content) == answered.count(content) == 1 and follow.startswith(after):
        return follow[len(after) :]
    raise RowError("template_rewrites", "How the template begins this answer depends on what it says.")


def _block_of(render: Render, shown: Sequence[dict[str, Any]], prompt: str, *, look_back: int = 0) -> Block | None:
    """Reasoning block at the end of the generation prompt.

    A template that always writes the generation prompt hides its start; then ``look_back`` characters are searched.
    """
    before = render(shown[:-1], False)
    if before == prompt:
        return prompt_block(prompt, max(0, len(prompt) - look_back))
    return prompt_block(prompt, same_length(before, prompt), worded=True)


def _place_of_reasoning(render: Render, shown: Sequence[dict[str, Any]], prompt: str) -> int | None:
    """Position of the reasoning in a finished answer, if the prompt ends there, or with words in its place.

    None if the template shows no reasoning, or shows it elsewhere.
    """
    try:
        text = render([*shown[:-1], {**shown[-1], "reasoning_content": FOLLOW_UP}], False)
    except RowError:
        return None
    place = text.find(FOLLOW_UP)
    if text.startswith(prompt):
        return max(place, len(prompt))
    return place if place >= 0 and prompt.startswith(text[:place]) and prompt[place:].strip() else None


def _after_same_text(render: Render, shown: Sequence[dict[str, Any]], prompt: str, text: str) -> str | None:
    """Continuation of the prompt in a text that differs from it only in spaces; None if they differ otherwise.

    Spaces at the point of divergence belong to the answer if they come from its message, not from the template.
    """
    end = _end_of_same(prompt, text)
    if end is None:
        return None
    rest, given = text[end:], prompt[len(prompt.rstrip()) :]
    if rest.startswith(given):
        return rest[len(given) :]
    body = rest.lstrip()
    spaces = rest[: len(rest) - len(body)]
    written = _spaces_before_content(render, shown, prompt)
    own = "" if written is None or not spaces.startswith(written) else spaces[len(written) :]
    return own + body


def _end_of_same(prompt: str, text: str) -> int | None:
    """Position in a text after the last character of a prompt, if the two differ only in spaces, else None."""
    place = after = same_length(prompt, text)
    end = len(text[:after].rstrip())
    while True:
        while place < len(prompt) and prompt[place].isspace():
            place += 1
        if place == len(prompt):
            return end
        while after < len(text) and text[after].isspace():
            after += 1
        if after == len(text) or text[after] != prompt[place]:
            return None
        place, after = place + 1, after + 1
        end = after


def _spaces_before_content(render: Render, shown: Sequence[dict[str, Any]], prompt: str) -> str | None:
    """Spaces that a template writes between the prompt and the content of an answer."""
    try:
        text = render([*shown[:-1], {**shown[-1], "content": FOLLOW_UP}], False)
    except RowError:
        return None
    end = _end_of_same(prompt, text)
    if end is None or (place := text.find(FOLLOW_UP, end)) < 0:
        return None
    return text[end:place] if not text[end:place].strip() else None


def same_length(first: str, second: str) -> int:
    """Length of the common prefix of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(text: str) -> str:
    """Quoted beginning of a text."""
    return repr(one_line(text, _EXCERPT)) if text else "nothing"


def _excerpt_end(text: str) -> str:
    return repr(one_line(text[-_EXCERPT:], _EXCERPT + 1))


# The end of an answer


def _following_stop(
    render: Render,
    messages: Sequence[dict[str, Any]],
    shown: Sequence[dict[str, Any]],
    tail: str,
    stops: re.Pattern[str],
) -> str:
    """Stop text at the beginning of the next turn, for templates that end a turn by beginning another."""
    index = len(shown) - 1
    follow: dict[str, Any] = {"role": "user"}
    if index + 1 < len(messages) and messages[index + 1]["role"] != "assistant":
        follow = messages[index + 1]
    elif calls := shown[-1].get("tool_calls"):
        call = calls[0]
        follow = {"role": "tool", "name": call["function"]["name"], "tool_call_id": call.get("id", "")}
    end = _excerpt_end(tail) if tail.strip() else "nothing"
    refusal = RowError(
        "no_stop_token",
        f"The chat template does not end an answer with a token that stops the model, but with {end}."
        if stops.groups
        else "The model's files name no token that stops it.",
    )
    try:
        continued = render([*shown, {**follow, "content": FOLLOW_UP}], False)
    except RowError as error:
        raise refusal from error
    header = continued.rfind(FOLLOW_UP)
    # Compare only the end of the answer: its reasoning may be left out by now.
    content = text_of(shown[-1]).strip()
    endings = [tail.strip(), re.split(r"</\w+>", tail)[-1].strip()]
    endings += [content] if tail.rstrip().endswith(content) else []
    found = None
    for stop in stops.finditer(continued, 0, max(header, 0)):
        before = continued[: stop.start()].rstrip()
        if any(ending and before.endswith(ending) for ending in endings):
            found = stop
    if found is None:
        raise refusal
    return found.group()
