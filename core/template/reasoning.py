"""Reasoning before an answer: its place in a message, its rendering, and reasoning blocks in prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.conversation import RowError

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
            elif not _READS_FIELD.search(source) and (_ours(source) or not _OWN_MARKUP.search(source)):
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


def _ours(source: str) -> bool:
    """True if a template writes our markup, or a part of it."""
    return _OPENING in source or _CLOSING in source


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
