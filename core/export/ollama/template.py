"""Chat templates as Go templates: exact, or refused with what cannot be carried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from core.data.conversation import RowError
from core.errors import UserError
from core.export.ollama.carry import go_template, is_kept
from core.export.ollama.go_template import GoTemplate
from core.export.ollama.probe import NotCarriedError, Renderer, writes_date
from core.export.ollama.proof import Kind, prove, prove_rows
from core.export.ollama.shape import Shape, find_shape
from core.sandbox.pool import sandboxed
from core.template.render import ChatTemplate

#: Seconds of processor time for finding and proving a template; most take one or two.
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
#: What a difference means, for the kinds of conversations that may have one.
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
    """A chat template as Ollama has it."""

    text: str
    """The Go template."""
    system: str
    """What becomes of a system prompt: ``turn``, ``inside`` a user's message, ``ignored`` or ``refused``."""
    conversations: int
    """Conversations that it was compared with the chat template on, with equal texts."""
    rows: int
    """Rows of the user's data with equal texts."""
    notes: tuple[str, ...]
    """What is not carried, a sentence each; empty if everything is."""


def carry_template(
    template: str,
    special_tokens: Mapping[str, str],
    *,
    adds_bos: bool,
    now: datetime | None = None,
    rows: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> OllamaTemplate:
    """A chat template as a Go template, which has written the same texts for all conversations of a proof.

    Args:
        template: The Jinja template that training used.
        special_tokens: Texts of the special tokens by the names in templates, such as ``bos_token``.
        adds_bos: Whether the reader of the GGUF file puts the token at the beginning of a sequence before every
            prompt; see :func:`core.export.ollama.tokens.adds_bos`. It is left out of the Go template then.
        now: The date that stays in the template if it writes one; None refuses such templates.
        rows: Conversations of the user's data that it must write the same as well: ``role``, ``content`` and the other
            fields that :meth:`core.data.conversation.Message.fields` has.

    Raises:
        UserError: If the template cannot be carried; the message has the construct.
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
    """:func:`carry_template` in this process, which must be confined where the template is not trusted."""
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
    template = GoTemplate(text)
    proven = prove(renderer, template, shape)
    tried = prove_rows(renderer, template, rows, proven.differing)
    if unexplained := proven.differing.get("plain") or tried.unexplained:
        raise NotCarriedError(f"writes turns by rules that a Go template does not have: {unexplained}")
    notes = [*_system_notes(shape)]
    if has_date and date is not None:
        notes.append(f"The chat template writes the date, which stays {date:%Y-%m-%d} in Ollama.")
    if _reads_tools(chat):
        notes.append(
            "Tools are not carried: the chat template writes them as Python's JSON, which Ollama's templates cannot. "
            "Without tools everything is as in training."
        )
    notes += [note for kind, note in _NOTES if kind in proven.differing]
    if tried.differing:
        notes.append(
            f"{tried.differing} of {tried.compared} rows of your data are written otherwise for these reasons."
        )
    reasoning = shape.reasoning
    if reasoning is not None and is_kept(reasoning.opening + reasoning.closing):
        notes.append(_reasoning_note(reasoning.opening, reasoning.closing, reasoning.in_history))
    return OllamaTemplate(text, shape.system, proven.conversations, tried.compared - tried.differing, tuple(notes))


def _system_notes(shape: Shape) -> Iterator[str]:
    if shape.system == "refused":
        yield "The chat template refuses a system prompt, and so does its copy: Ollama answers with an error."
    elif shape.system == "ignored":
        yield "The chat template leaves a system prompt out, and so does its copy: it has no effect in Ollama."


def _reasoning_note(opening: str, closing: str, in_history: bool) -> str:
    kept = "stays in" if in_history else "is left out of"
    tags = f"{opening.strip()} and {closing.strip()}"
    return f"Ollama keeps the reasoning between {tags} apart as thinking; it {kept} earlier turns, as in training."


def _reads_tools(chat: ChatTemplate) -> bool:
    """Whether a template writes anything else for a conversation with tools."""

    def render(tools: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            return chat.render(_ASKED, tools=tools, add_generation_prompt=True)
        except RowError:
            return None

    return render(_TOOLS) != render(())
