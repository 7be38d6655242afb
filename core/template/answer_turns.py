"""Supervised turns: the assistant's text in a rendered conversation, found by comparing renderings, without markers.

For every assistant turn, compare two renderings: the prompt at inference (the messages before the turn, with the
generation prompt), and the conversation including the turn. The text that the second adds to the first, up to and
including the stop token, is the answer that the model must learn. Nothing is guessed from the text of a template: it
is either read exactly or refused with a reason.

Reasoning comes before an answer. It is put where the template reads it, and blocks that the prompt opens or closes are
taken into account.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.conversation import RowError
from core.text import one_line

#: Renders messages; the second argument adds the generation prompt.
Render = Callable[[Sequence[dict[str, Any]], bool], str]

#: End of reasoning in a content.
REASONING_END = "</think>"
_OPENING, _CLOSING = "<think>", REASONING_END
#: Block at the end of a prompt: opened, opened and closed (perhaps with a heading inside), or only closed.
_PROMPT_BLOCK = (
    r"(?:"
    r"<(?P<xml>[A-Za-z_][\w:]*)>(?P<xml_end>{inside}</(?P=xml)>)?"
    r"|<\|(?P<pipe>\w+)>(?:\w+\s*)?(?P<pipe_end><(?P=pipe)\|>)?"
    r"|<\|START_(?P<start>\w+)\|>(?P<start_end>\s*<\|END_(?P=start)\|>)?"
    r"|\[(?P<square>\w+)\](?P<square_end>\s*\[/(?P=square)\])?"
    r"|(?P<lone></[A-Za-z_][\w:]*>)"
    r")\s*\Z"
)
_BLOCK = re.compile(_PROMPT_BLOCK.format(inside=r"\s*"))
#: Block written by the template itself, which may hold a sentence, for example about a token budget.
_WORDED_BLOCK = re.compile(_PROMPT_BLOCK.format(inside=r"(?:(?!</?(?P=xml)>).)*"), re.DOTALL)
#: Empty block, or the end of a block, at the beginning of an answer.
_EMPTY_BLOCK = re.compile(r"\s*(?:<(?P<tag>[A-Za-z_][\w:]*)>(?P<inside>\s*)</(?P=tag)>|</[A-Za-z_][\w:]*>)")
_TAG = re.compile(r"<[A-Za-z_][\w:]*>")
_THOUGHT = re.compile(rf"(?P<opening>\s*{_OPENING})?(?P<inside>.*?){_CLOSING}(?P<visible>.*)", re.DOTALL)
#: Replaces the reasoning of a message, to test if a template shows it.
_PROBE = "\U0010fffb"
#: Access to a reasoning field in a template, access to reasoning parts, and markup other than ours.
_READS_FIELD = re.compile(r"(?:\.|\[['\"]|get\(['\"])(?:reasoning_content|reasoning|thinking)\b")
_READS_PARTS = re.compile(r"==\s*['\"]thinking['\"]")
#: Code of a template that splits a content at the end of its reasoning block.
_SPLITS = re.compile(r"split\(\s*['\"]</think>")
_OWN_MARKUP = re.compile(
    r"[<\[]\|?/?(?:START_|END_|inner_|seed:)?(?:think|thinking|thought|channel|prefix)\|?[>\]]", re.I
)


@dataclass(frozen=True)
class Block:
    """A reasoning block at the end of a prompt."""

    start: int
    opening: str
    """Its opening without trailing spaces; empty if the prompt only closes it."""
    text: str
    closed: bool


@dataclass(frozen=True)
class Thought:
    """Reasoning of a message, and the visible text after it."""

    inside: str
    visible: str
    kept: str | None = None
    """Text before the visible answer, as in the message; None if the reasoning has its own field."""

    @property
    def bare(self) -> str:
        """The reasoning, stripped."""
        return self.inside.strip()


def text_of(message: dict[str, Any]) -> str:
    """The content of a message as text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def thought_of(message: dict[str, Any]) -> Thought | None:
    """Reasoning of a message: from its field, from a part of its content, or from a block in the content."""
    content = message.get("content")
    if isinstance(content, list):
        thoughts = [str(part["thinking"]) for part in content if isinstance(part, dict) and part.get("thinking")]
        return Thought("".join(thoughts), text_of(message)) if thoughts else None
    if reasoning := message.get("reasoning_content"):
        return Thought(str(reasoning), text_of(message))
    found = _THOUGHT.fullmatch(text_of(message)) if _CLOSING in text_of(message) else None
    if found is None or (found["opening"] is None and _OPENING in found["inside"]):
        return None
    text, visible = found.string, found["visible"]
    return Thought(found["inside"], visible, text[: len(text) - len(visible.lstrip())].lstrip())


def has_reasoning(message: dict[str, Any]) -> bool:
    """True if an assistant's message has reasoning, in its own field or in the content."""
    return message["role"] == "assistant" and thought_of(message) is not None


def prompt_block(prompt: str, begin: int, *, worded: bool = False) -> Block | None:
    """Reasoning block at the end of a generation prompt, or None.

    Args:
        prompt: The prompt.
        begin: Start of its generation prompt.
        worded: True to accept a block with words inside; False if they could be words of a message.
    """
    found = (_WORDED_BLOCK if worded else _BLOCK).search(prompt, begin)
    if found is None:
        return None
    end = next((found[name] for name in ("xml_end", "pipe_end", "start_end", "square_end", "lone") if found[name]), "")
    opening = found.group().rstrip().removesuffix(end).rstrip()
    return Block(found.start(), opening, found.group(), bool(end))


def place_reasoning(render: Render, messages: Sequence[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Messages with the reasoning in the place where the template reads it.

    That is a field of its own, or parts of the content. A block in the content is moved there too, unless the template
    splits contents itself. For a template that reads neither, the reasoning is written as the model would write it, in
    a ``<think>`` block before the answer. If such a template has other markup for reasoning, the reasoning stays in
    place, and the completeness check reports it missing.

    Args:
        render: Renders messages.
        messages: The conversation.
        source: Text of the template.
    """
    placed: list[dict[str, Any]] = []
    for message in messages:
        message = _out_of_content(render, placed, message, source)
        reasoning = message.get("reasoning_content")
        if reasoning:
            forms = [_as_it_is, *([_in_parts] if _READS_PARTS.search(source) else [])]
            # Rendered with a probe, since the text after the reasoning may repeat it.
            probe = {**message, "reasoning_content": _PROBE}
            shown = next((form for form in forms if _PROBE in render([*placed, form(probe)], False)), None)
            if shown is not None:
                message = shown(message)
            elif not _READS_FIELD.search(source) and (
                _OPENING in source or _CLOSING in source or not _OWN_MARKUP.search(source)
            ):
                message = _in_content(message, *_own_spaces(render, placed, message))
        placed.append(message)
    return placed


def _out_of_content(
    render: Render, before: Sequence[dict[str, Any]], message: dict[str, Any], source: str
) -> dict[str, Any]:
    """A message with the reasoning block of its content moved to the field that the template reads.

    Unchanged if the template splits contents itself, reads no field, or renders both forms alike.
    """
    thought = thought_of(message)
    if thought is None or thought.kept is None or _SPLITS.search(source) or not _READS_FIELD.search(source):
        return message
    moved = {**message, "content": thought.visible.lstrip(), "reasoning_content": thought.bare}
    probe = {**moved, "reasoning_content": _PROBE}
    forms = [_as_it_is, *([_in_parts] if _READS_PARTS.search(source) else [])]
    if not any(_PROBE in render([*before, form(probe)], False) for form in forms):
        return message
    texts = {"".join(render([*before, form], False).split()) for form in (message, moved)}
    return moved if len(texts) > 1 else message


def _own_spaces(render: Render, before: Sequence[dict[str, Any]], message: dict[str, Any]) -> tuple[str, str]:
    """Spaces around the reasoning, and after its block, as the template writes them around an empty block."""
    content = message["content"]
    if not content:
        return "\n", "\n\n"
    head, end, rest = render([*before, _without_field(message)], False).rpartition(_CLOSING)
    place = rest.find(content)
    if not end or place < 0 or rest[:place].strip():
        return "\n", "\n\n"
    spaces = head[len(head.rstrip()) :]
    return spaces[: (len(spaces) + 1) // 2], rest[:place]


def _without_field(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def _as_it_is(message: dict[str, Any]) -> dict[str, Any]:
    return message


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "thinking", "thinking": message["reasoning_content"]}]
    if message["content"]:
        parts.append({"type": "text", "text": message["content"]})
    return {**_without_field(message), "content": parts}


def _in_content(message: dict[str, Any], around: str, after: str) -> dict[str, Any]:
    content = f"{_OPENING}{around}{message['reasoning_content']}{around}{_CLOSING}{after}{message['content']}"
    return {**_without_field(message), "content": content}


def is_shown(thought: Thought, said: str, message: dict[str, Any]) -> bool:
    """True if a rendered answer has the reasoning of its message, before text and calls that may repeat it."""
    names = [str(call.get("function", call).get("name", "")) for call in message.get("tool_calls") or ()]
    after = thought.visible.strip() or next(iter(names), "")
    end = said.rfind(after) if after else len(said)
    return thought.bare in (said if end < 0 else said[:end])


def restore_thought(thought: Thought, tail: str, message: dict[str, Any], *, begun: bool) -> str:
    """A rendered answer, with the reasoning that the template left out.

    Unchanged if it has the reasoning, or if its form is unknown.

    Args:
        thought: The reasoning.
        tail: Text rendered after the prompt.
        message: Its message.
        begun: True if the prompt opens a reasoning block.
    """
    # The completeness check reports reasoning in the wrong place.
    if is_shown(thought, tail, message) or (thought.kept is not None and thought.kept.strip() in tail):
        return tail
    empty = _empty_block(tail, thought.visible)
    if empty is not None and empty["tag"] is not None:
        spaces = empty["inside"]
        half = len(spaces) // 2
        place = empty.start("inside")
        return tail[:place] + spaces[:half] + thought.bare + spaces[half:] + tail[empty.end("inside") :]
    if empty is not None and begun:
        return thought.bare + tail
    begin = _visible_at(thought, tail)
    return tail if thought.kept is None or begin is None else thought.kept + tail[begin:]


def after_closed(block: Block, tail: str, content: str) -> str:
    """Continuation of a prompt that closes the reasoning, from a rendered answer without the block.

    Raises:
        RowError: ``template_rewrites`` if the rendered answer begins with reasoning.
    """
    empty = _empty_block(tail, content)
    if empty is None and block.opening and tail.lstrip().startswith(block.opening):
        raise closed_error()
    return tail if empty is None else tail[empty.end() :]


def closed_error() -> RowError:
    """The error for an answer with reasoning after a prompt that closes the reasoning."""
    return RowError("template_rewrites", "The chat template's prompt ends the reasoning that the answer begins with.")


def inside_begun(block: Block, tail: str, thought: Thought | None, content: str) -> str:
    """Text that the model must produce inside a block that the prompt opens but the rendered answer lacks.

    Raises:
        RowError: ``no_reasoning`` if the answer has no reasoning, ``template_rewrites`` if the answer after it is
            rewritten too.
    """
    ended = _empty_block(tail, content if thought is None else thought.visible)
    if ended is not None and ended["tag"] is None:
        # The template itself renders an empty block; the reasoning belongs before its end.
        return tail if thought is None else thought.bare + tail
    if thought is None:
        raise RowError(
            "no_reasoning",
            f"The chat template lets the model begin with {block.opening}, and the answer has no reasoning.",
        )
    begin = _visible_at(thought, tail)
    if begin is None or not _TAG.fullmatch(block.opening):
        raise RowError("template_rewrites", "The chat template leaves out reasoning and rewrites the answer after it.")
    if thought.kept is None or block.opening != _OPENING:
        return f"{thought.bare}\n</{block.opening[1:]}\n\n{tail[begin:]}"
    kept = thought.kept
    lead = next((text for text in (block.text, block.opening) if kept.startswith(text)), "")
    said = kept[len(lead) :]
    return (said if lead == block.text else said.lstrip()) + tail[begin:]


def _empty_block(tail: str, visible: str) -> re.Match[str] | None:
    """Empty block, or end of a block, that a template writes before the visible answer; None without one."""
    found = _EMPTY_BLOCK.match(tail)
    return None if found is None or visible.lstrip().startswith(found.group().strip()) else found


def _visible_at(thought: Thought, tail: str) -> int | None:
    """Position of the visible answer in a rendered answer, if only spaces precede it, else None."""
    visible = thought.visible.strip()
    if not visible:
        return len(thought.visible) if tail.startswith(thought.visible) else 0
    begin = tail.find(visible)
    return None if begin < 0 or tail[:begin].strip() else begin


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
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                with contextlib.suppress(ValueError):
                    arguments = json.loads(arguments)
            if str(function.get("name", "")) not in said:
                wrong = "leaves out a tool call"
            elif not all(_is_in(value, said) for value in leaves(arguments)):
                wrong = "leaves out or changes an argument of a tool call"
    if wrong:
        raise RowError("template_drops", f"The chat template {wrong} of message {number}.")


def leaves(value: Any) -> Iterator[Any]:
    """Scalars in a JSON value, and keys."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


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


def begun_answer(render: Render, messages: Sequence[dict[str, Any]], stops: re.Pattern[str]) -> str:
    """Text of a conversation up to the end of its last message, an answer for the model to continue.

    Args:
        render: Renders messages.
        messages: The conversation.
        stops: As for :func:`read_turn`.

    Raises:
        RowError: As :func:`read_turn`, but for ``no_stop_token``.
    """
    turn = read_turn(render, messages, len(messages) - 1, stops, ending="\0")
    stop = stops.search(turn.answer)
    said = turn.answer if stop is None else turn.answer[: stop.start()]
    content = text_of(messages[-1])
    # Some templates trim answers.
    content = content if content in said else content.strip()
    return turn.prompt + said[: said.rfind(content) + len(content)] if content else turn.prompt


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
