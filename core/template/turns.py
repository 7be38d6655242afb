"""Which text the model must produce: the assistant's turns of a rendered conversation, found without markers.

For every assistant turn two renderings are compared: what inference shows the model before the turn (the messages
before it, with the generation prompt) and the conversation up to and with the turn. What the second adds to the first,
up to and including the token that stops the model, is what the model must say. Nothing is guessed from how a template
looks, so a template is either read exactly or refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.conversation import RowError

#: Renders messages; the second argument asks for the generation prompt.
Render = Callable[[Sequence[dict[str, Any]], bool], str]

#: The content of an invented message, to see what a template writes before a turn that follows an answer.
FOLLOW_UP = "\U0010fffd"

#: A reasoning block that a generation prompt begins, or begins and ends, for the model.
_BEGUN_BLOCK = re.compile(r"<(?P<tag>[A-Za-z_]\w*)>(?P<end>\s*</(?P=tag)>)?\s*\Z")
_REASONING_TAG = "think"


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant as text."""

    index: int
    """Its message."""
    prompt: str
    """What inference shows the model."""
    answer: str
    """What the model must say then, the text of the stop token at its end."""
    rest: str
    """What the template writes after it."""

    @property
    def learned(self) -> str:
        """The text up to the end of the answer."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class RowText:
    """The text of one row and the stretches of it that are learned."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Start and end of each answer, in order; the text before a start is what inference shows the model."""
    inverted: bool = False
    """Everything is learned but the spans."""


def read_turn(
    render: Render, messages: Sequence[dict[str, Any]], index: int, stops: re.Pattern[str], *, opaque: bool = False
) -> Turn:
    """What inference shows before an assistant's message, and what the model must say.

    Args:
        render: Renders messages.
        messages: The conversation.
        index: The assistant's message.
        stops: Finds the text of a token that stops the model.
        opaque: The contents are placeholders, so what would have to look at them is refused.

    Raises:
        RowError: ``role_order`` if nothing precedes it, ``template_rewrites`` or ``template_drops`` if the template
            does not show the turn as inference has it, ``no_stop_token`` if nothing in it stops the model.
    """
    if index == 0:
        # Templates are not written for it, and inference has nothing to show.
        raise RowError("role_order", "The conversation begins with an assistant message.")
    shown = messages[: index + 1]
    prompt, answered = render(messages[:index], True), render(shown, False)
    if answered.startswith(prompt):
        tail = answered[len(prompt) :]
    elif opaque:
        raise RowError("template_rewrites", "How the template begins this answer depends on what it says.")
    else:
        tail = _bridge(render, shown, prompt, answered)
    if not opaque:
        tail = _with_thought(messages[index], tail)
    if (stop := stops.search(tail)) is not None:
        answer, rest = tail[: stop.end()], tail[stop.end() :]
        said = tail[: stop.start()]
    else:
        said, rest = tail, ""
        answer = tail + _following_stop(render, messages, shown, tail, stops)
    _check_complete(messages[index], said, index)
    return Turn(index, prompt, answer, rest)


def group_turns(turns: Sequence[Turn]) -> list[RowText]:
    """The fewest rows in which every turn stands exactly as inference has it.

    One row, where the template only adds to what it wrote before. Where it writes earlier turns differently once later
    ones follow (reasoning left out, another end of turn), such a turn gets a row of its own that ends with it. The row
    of the last turn comes first.
    """
    rows: list[RowText] = []
    open_turns = list(turns)
    while open_turns:
        last = open_turns.pop()
        within = [turn for turn in open_turns if last.prompt.startswith(turn.learned)]
        open_turns = [turn for turn in open_turns if not last.prompt.startswith(turn.learned)]
        spans = tuple((len(turn.prompt), len(turn.learned)) for turn in (*within, last))
        rows.append(RowText(last.learned + last.rest, spans))
    return rows


def place_reasoning(render: Render, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, their reasoning moved into the content where the template knows no field for it.

    A template that leaves the reasoning out of the very turn it belongs to does not read it where it is, so it is
    written as the model would write it: in a block before the answer.
    """
    placed: list[dict[str, Any]] = []
    for message in messages:
        reasoning = message.get("reasoning_content")
        if reasoning and reasoning.strip() not in render([*placed, message], False)[len(render(placed, False)) :]:
            content = f"<{_REASONING_TAG}>\n{reasoning}\n</{_REASONING_TAG}>\n\n{message['content']}"
            message = {key: value for key, value in message.items() if key != "reasoning_content"}
            message["content"] = content
        placed.append(message)
    return placed


def _with_thought(message: dict[str, Any], tail: str) -> str:
    """A rendered answer with the reasoning that its message begins with, where the template leaves it out even here."""
    content = str(message["content"]).lstrip()
    opening, closing = f"<{_REASONING_TAG}>", f"</{_REASONING_TAG}>"
    if not content.startswith(opening) or closing not in content or closing in tail:
        return tail
    visible = content.partition(closing)[2]
    begin = tail.find(visible.strip()) if visible.strip() else -1
    if begin < 0 or tail[:begin].strip():
        return tail
    kept = content[: len(content) - len(visible.lstrip())]
    return kept + tail[begin:]


def _bridge(render: Render, shown: Sequence[dict[str, Any]], prompt: str, answered: str) -> str:
    """What follows the generation prompt where that holds a reasoning block that the rendered turn does not.

    A block that is begun only: the model must go on inside it, with the reasoning that the template leaves out of the
    rendered turn, so it is taken from the message. A block that is begun and ended: the model must go on after it.
    """
    before = render(shown[:-1], False)
    block = _BEGUN_BLOCK.search(prompt, len(before)) if prompt.startswith(before) else None
    if block is None or not answered.startswith(prompt[: block.start()]):
        raise RowError(
            "template_rewrites",
            "The chat template does not begin an answer with the prompt that it gives the model.",
        )
    tail = answered[block.start() :]
    content = str(shown[-1]["content"]).lstrip()
    opening = f"<{block['tag']}>"
    if block["end"] is not None:
        if content.startswith(opening) or tail.startswith(opening):
            raise RowError(
                "template_rewrites", "The chat template's prompt ends the reasoning that the answer begins with."
            )
        return tail
    begun = block.group()
    if tail.startswith(opening):
        # The turn shows its reasoning, or that there is none, with other spaces than the prompt has.
        return tail[len(begun) :] if tail.startswith(begun) else tail[len(opening) :].lstrip()
    if not content.startswith(opening):
        raise RowError(
            "no_reasoning",
            f"The chat template lets the model begin with {opening}, and the answer has no reasoning.",
        )
    reasoning, closing, visible = content.partition(f"</{block['tag']}>")
    end = tail.find(visible.strip()) if visible.strip() else -1
    if not closing or end < 0 or tail[:end].strip():
        raise RowError(
            "template_rewrites",
            "The chat template leaves out reasoning and rewrites the answer after it.",
        )
    inside = reasoning[len(begun) :] if content.startswith(begun) else reasoning[len(opening) :].lstrip()
    between = visible[: len(visible) - len(visible.lstrip())]
    return f"{inside}{closing}{between}{tail[end:]}"


def _following_stop(
    render: Render,
    messages: Sequence[dict[str, Any]],
    shown: Sequence[dict[str, Any]],
    tail: str,
    stops: re.Pattern[str],
) -> str:
    """The stop that the next turn begins with, of templates that end a turn with the beginning of another."""
    index = len(shown) - 1
    role = messages[index + 1]["role"] if index + 1 < len(messages) else "user"
    if role == "assistant":
        role = "user"
    refusal = RowError("no_stop_token", "The chat template does not end an answer with a token that stops the model.")
    try:
        continued = render([*shown, {"role": role, "content": FOLLOW_UP}], False)
    except RowError as error:
        raise refusal from error
    header = continued.rfind(FOLLOW_UP)
    # How the answer ends; where it begins may look different, as earlier reasoning may be left out by now.
    ending = str(shown[-1]["content"]).strip() or tail[-16:]
    found = None
    for stop in stops.finditer(continued, 0, max(header, 0)):
        if continued[: stop.start()].rstrip().endswith(ending.rstrip()):
            found = stop
    if found is None or not ending.strip() or not tail.rstrip().endswith(ending.rstrip()):
        raise refusal
    return found.group()


def _check_complete(message: dict[str, Any], said: str, index: int) -> None:
    """Refuse an answer of which the template leaves something out."""
    number = index + 1
    missing = ""
    for call in message.get("tool_calls") or ():
        if str(call.get("function", call).get("name", "")) not in said:
            missing = "a tool call"
    if message.get("reasoning_content") and message["reasoning_content"].strip() not in said:
        missing = "the reasoning"
    content = str(message["content"])
    if f"<{_REASONING_TAG}>" in content and f"</{_REASONING_TAG}>" in content and f"</{_REASONING_TAG}>" not in said:
        missing = "the reasoning"
    if content.rpartition(f"</{_REASONING_TAG}>")[2].strip() not in said:
        missing = "or changes the text"
    if missing:
        raise RowError("template_drops", f"The chat template leaves out {missing} of message {number}.")
