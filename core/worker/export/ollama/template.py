"""Chat templates as Go templates: exact, or refused with the construct that cannot be converted."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Any, Literal

from core.data.conversation import RowError
from core.errors import UserError
from core.sandbox.pool import sandboxed
from core.template.render import ChatTemplate
from core.text import one_line
from core.worker.export.ollama.go_template import WHITE_SPACE, go_template, is_kept, render
from core.worker.export.ollama.shape import NotCarriedError, Renderer, Shape, find_shape, writes_date

Kind = Literal["plain", "white space", "empty", "tags", "reasoning", "begun"]
"""Property of a conversation: nothing special; white space at the end of a message; an empty system prompt or question;
tags in a message's text that some templates look for; reasoning in a field of its own; a begun answer to continue.
"""
Conversation = Sequence[Mapping[str, Any]]

_SEED = 20
#: Conversations of random plain texts for each number of turns, besides conversations that repeat a text.
_COUNT = 12
#: Texts that a chat template or a Go template could mistake for markup.
_TEXTS = (
    "Hello",
    "Wie geht es dir?\nGut.",
    "a\n\nb\tc  d",
    "{{ .Content }} {% if x %}{{ messages }}{% endif %} {{- 1 -}}",
    'He said "no" \\n \\" `x` """ \'y\'',
    "0",
    "false",
    "None",
    "user",
    "system",
    "assistant",
    "<|im_end|>\n<|im_start|>user",
    "</s><eos>[INST] x [/INST] <|eot_id|>",
    "### Response:",
    "👩‍👩‍👧 e\u0301 ß \u202eabc\u202c 中文 \u200b| \ufeff.",
    "<b>&amp;</b> %s %d {} {0}",
    "x" * 3000,
    "\u2581a｜b",
    "a\r\nb",
)
_THOUGHTS = ("Because.", "One\n\ntwo", "so it is")
_TAGGED_ANSWERS = ("<think>why</think>because", "<think>\n\n</think>\n\nYes.", "a </think> b", "<think>open")
_TAGGED_QUESTIONS = ("<tool_response>x</tool_response>", "Why? /no_think", "Why? /think")
_TAGS = re.compile(r"</?think|<tool_|/no_think|/think")
#: Tests whether a message makes its conversation of a kind.
_IS_OF: dict[Kind, Callable[[Mapping[str, Any]], bool]] = {
    "plain": lambda _: False,
    "white space": lambda message: message["content"] != message["content"].strip(),
    "empty": lambda message: not message["content"],
    "tags": lambda message: _TAGS.search(message["content"]) is not None,
    "reasoning": lambda message: "reasoning_content" in message,
    "begun": lambda _: False,
}


def prove(renderer: Renderer, shape: Shape) -> tuple[int, dict[Kind, str]]:
    """Compare the Go template of a shape with the chat template.

    Args:
        renderer: The chat template.
        shape: Its shape, which decides about system prompts and reasoning.

    Returns:
        The number of conversations with equal texts; and for each kind with a difference, the first one, as the rest of
        a sentence.
    """
    equal, differing = 0, dict[Kind, str]()
    for kind, messages in conversations(has_system=shape.system in ("turn", "inside"), reasons=bool(shape.reasoning)):
        wanted, found = _wanted(renderer, messages), render(shape, messages)
        if found == wanted:
            equal += 1
        else:
            differing.setdefault(kind, _difference(messages, wanted, found))
    return equal, differing


@dataclass
class ProvenRows:
    """Comparison of the prompts of the user's rows."""

    compared: int = 0
    differing: int = 0
    """Rows with another text, of a kind with known differences."""
    unexplained: str | None = None
    """The first difference of any other row, as the rest of a sentence."""


def prove_rows(renderer: Renderer, shape: Shape, rows: Sequence[Conversation], kinds: Collection[Kind]) -> ProvenRows:
    """Compare both templates on rows of the user's data, each up to its last question.

    Args:
        renderer: The chat template.
        shape: Its shape.
        rows: The conversations; rows with calls or answers of tools are left out.
        kinds: The kinds of conversations with known differences.
    """
    result = ProvenRows()
    for row in rows:
        asked = max((at for at, message in enumerate(row) if message["role"] == "user"), default=None)
        if asked is None or any(message["role"] == "tool" or "tool_calls" in message for message in row):
            continue
        messages = row[: asked + 1]
        result.compared += 1
        wanted, found = _wanted(renderer, messages), render(shape, messages)
        if found != wanted and any(_IS_OF[kind](message) for kind in kinds for message in messages):
            result.differing += 1
        elif found != wanted and result.unexplained is None:
            result.unexplained = _difference(messages, wanted, found)
    return result


def _wanted(renderer: Renderer, messages: Conversation) -> str | None:
    """Text of a conversation by the chat template; None if it refuses it.

    A begun answer ends with its text, so that the model continues it, like transformers' ``continue_final_message``.
    """
    is_begun = messages[-1]["role"] == "assistant"
    try:
        text = renderer.render(messages, prompt=not is_begun)
    except RowError:
        return None
    content = messages[-1]["content"]
    return text[: text.rindex(content) + len(content)] if is_begun and content in text else text


def conversations(*, has_system: bool, reasons: bool = False) -> Iterator[tuple[Kind, Conversation]]:
    """Conversations in the form of training, each with its kind; the same every time.

    Args:
        has_system: Include conversations with a system prompt.
        reasons: Include conversations with reasoning in a field of its own.
    """
    pick = random.Random(_SEED)  # noqa: S311 - examples, no secrets
    systems: tuple[bool, ...] = (False, True) if has_system else (False,)
    for system in systems:
        for turns in range(1, 6):
            for text in _TEXTS[: 8 if turns > 2 else None]:
                yield "plain", _fill(turns, system, repeat(text).__next__)
            for _ in range(_COUNT):
                yield "plain", _fill(turns, system, lambda: pick.choice(_TEXTS))
        for turns in (1, 2, 3):
            for messages in (_fill(turns, system, lambda: pick.choice(_TEXTS)) for _ in range(4)):
                yield "begun", [*messages, {"role": "assistant", "content": "So it"}]
            for place in range(2 * turns - 1 + system):
                yield from _spaced(turns, system, place, pick)
                messages = _fill(turns, system, lambda: pick.choice(_TEXTS))
                is_answer = messages[place]["role"] == "assistant"
                for text in _TAGGED_ANSWERS if is_answer else _TAGGED_QUESTIONS:
                    yield "tags", _with(messages, place, text)
                if not is_answer:
                    yield "empty", _with(messages, place, "")
                elif reasons:
                    messages[place]["reasoning_content"] = pick.choice(_THOUGHTS)
                    yield "reasoning", messages


def _spaced(turns: int, system: bool, place: int, pick: random.Random) -> Iterator[tuple[Kind, Conversation]]:
    """Conversations with white space around one message: all of it in short ones, some in longer ones."""
    for number, space in enumerate((" \n ", "\u3000 \xa0", *(WHITE_SPACE if turns < 3 else "\n"))):
        messages = _fill(turns, system, lambda: pick.choice(_TEXTS))
        text = messages[place]["content"]
        forms = (space + text + space, space + text, text + space)
        for padded in forms if number < 2 else forms[:1]:
            yield "white space", _with(messages, place, padded)
    if messages[place]["role"] != "assistant":
        yield "white space", _with(messages, place, " \n")


def _fill(turns: int, system: bool, text: Callable[[], str]) -> list[dict[str, str]]:
    roles = ["system"] * system + ["user", "assistant"] * turns
    return [{"role": role, "content": text()} for role in roles[:-1]]


def _with(messages: Conversation, place: int, content: str) -> Conversation:
    return [{**message, **({"content": content} if at == place else {})} for at, message in enumerate(messages)]


def _difference(messages: Conversation, wanted: str | None, found: str | None) -> str:
    """The first difference of two texts, as the rest of a sentence."""
    turns = sum(message["role"] == "user" for message in messages)
    system = " and a system prompt" if messages[0]["role"] == "system" else ""
    about = f"a conversation with {turns} question{'s' * (turns > 1)}{system}"
    if wanted is None:
        return f"{about} is refused by the chat template"
    if found is None:
        return f"{about} is refused by the Go template"
    place = next((at for at, (one, other) in enumerate(zip(wanted, found, strict=False)) if one != other), None)
    at = min(len(wanted), len(found)) if place is None else place
    return f"{about} has {_excerpt(wanted, at)} where the Go template writes {_excerpt(found, at)}"


def _excerpt(text: str, at: int) -> str:
    return repr(one_line(text[max(at - 12, 0) : at + 20], 60)) if text[at:] else "nothing more"


#: Seconds of processor time to convert and prove a template; most take one or two.
_SECONDS = 60
_HINT = (
    "Serve the GGUF file with llama.cpp, which reads the chat template itself, or the run with 'localtune-tui serve'."
)
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds.",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        },
    }
]
_ASKED = [{"role": "user", "content": "a"}]
#: Notes by the effect of a system prompt.
_SYSTEM_NOTES = {
    "refused": "The chat template refuses a system prompt, and so does its copy: Ollama answers with an error.",
    "ignored": "The chat template leaves a system prompt out, and so does its copy: it has no effect in Ollama.",
}
#: Meaning of a difference, by kind of conversation.
_NOTES: tuple[tuple[Kind, str], ...] = (
    ("white space", "White space at the ends of a message is not left out, or kept, in the way of the chat template."),
    ("empty", "An empty message is not written in the way of the chat template."),
    (
        "tags",
        "Tags inside the text of a message, such as <think> or <tool_response>, mean something to the chat template "
        "and nothing to Ollama: send earlier answers back without their reasoning.",
    ),
    (
        "reasoning",
        "Reasoning that the client sends along with an earlier answer is not written as the chat template does.",
    ),
    (
        "begun",
        "An answer that the client begins is gone on with where it ends; the chat template writes more before it.",
    ),
)


@dataclass(frozen=True)
class OllamaTemplate:
    """A chat template for Ollama."""

    text: str
    """The Go template."""
    system: str
    """Effect of a system prompt: ``turn``, ``inside`` a user's message, ``ignored`` or ``refused``."""
    conversations: int
    """Compared conversations with equal texts."""
    notes: tuple[str, ...]
    """Differences from the chat template, a sentence each."""


def carry_template(
    template: str,
    special_tokens: Mapping[str, str],
    *,
    adds_bos: bool,
    now: datetime | None = None,
    rows: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> OllamaTemplate:
    """Convert a chat template to a Go template with the same output for all conversations of a proof.

    Args:
        template: The Jinja template that training used.
        special_tokens: Texts of the special tokens by the names in templates, such as ``bos_token``.
        adds_bos: True if the reader of the GGUF file puts the token at the beginning of a sequence before every
            prompt; see :func:`core.worker.export.ollama.modelfile.adds_bos`. It is left out of the Go template then.
        now: The fixed date of a template that writes one; None refuses such templates.
        rows: Conversations of the user's data that must have the same output as well, with the fields of
            :meth:`core.data.conversation.Message.fields`.

    Raises:
        UserError: If the template cannot be converted; the message names the construct.
    """
    call = sandboxed(carry_here, "The chat template", seconds=_SECONDS)
    plain = [[dict(message) for message in row] for row in rows]
    return call(template, dict(special_tokens), adds_bos, None if now is None else now.isoformat(), plain)


def carry_here(
    template: str,
    special_tokens: dict[str, str],
    adds_bos: bool,
    now: str | None,
    rows: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> OllamaTemplate:
    """:func:`carry_template` in this process, which must be confined for untrusted templates."""
    date = None if now is None else datetime.fromisoformat(now)
    chat = ChatTemplate(template, special_tokens, now=date)
    chat.check()
    try:
        return _carry(chat, Renderer(chat, special_tokens.get("bos_token", ""), adds_bos), date, rows)
    except NotCarriedError as error:
        raise UserError(f"The chat template cannot be carried over to Ollama: it {error.construct}.", _HINT) from error


def _carry(
    chat: ChatTemplate, renderer: Renderer, date: datetime | None, rows: Sequence[Sequence[Mapping[str, Any]]]
) -> OllamaTemplate:
    has_date = writes_date(chat)
    if has_date and date is None:
        raise NotCarriedError("writes the date (strftime_now)")
    shape = find_shape(renderer)
    text = go_template(shape)
    equal, differing = prove(renderer, shape)
    tried = prove_rows(renderer, shape, rows, differing)
    if unexplained := differing.get("plain") or tried.unexplained:
        raise NotCarriedError(f"writes turns by rules that a Go template does not have: {unexplained}")
    notes = [_SYSTEM_NOTES[shape.system]] if shape.system in _SYSTEM_NOTES else []
    if has_date and date is not None:
        notes.append(f"The chat template writes the date, which stays {date:%Y-%m-%d} in Ollama.")
    if _reads_tools(chat):
        notes.append(
            "Tools are not carried: the chat template writes them as Python's JSON, which Ollama's templates cannot. "
            "Without tools everything is as in training."
        )
    notes += [note for kind, note in _NOTES if kind in differing]
    if tried.differing:
        notes.append(
            f"{tried.differing} of {tried.compared} rows of your data are written otherwise for these reasons."
        )
    reasoning = shape.reasoning
    if reasoning is not None and is_kept(reasoning):
        kept = "stays in" if reasoning.in_history else "is left out of"
        tags = f"{reasoning.opening.strip()} and {reasoning.closing.strip()}"
        notes.append(
            f"Ollama keeps the reasoning between {tags} apart as thinking; it {kept} earlier turns, as in training."
        )
    return OllamaTemplate(text, shape.system, equal, tuple(notes))


def _reads_tools(chat: ChatTemplate) -> bool:
    """True if a template writes another text for a conversation with tools."""

    def render(tools: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            return chat.render(_ASKED, tools=tools, add_generation_prompt=True)
        except RowError:
            return None

    return render(_TOOLS) != render(())
