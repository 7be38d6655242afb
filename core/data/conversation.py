"""Training examples: conversations, plain text, preference pairs, labeled answers and tokens, made from rows."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.text import one_line

ROLES = ("system", "user", "assistant", "tool")

#: Label of a token outside the loss in pre-tokenized datasets.
IGNORED_LABEL = -100

#: Most messages of a conversation. Each answer is rendered with all messages before it, so the time grows with the
#: square of their number.
MOST_MESSAGES = 1000

#: Half of a UTF-16 pair: valid in JSON, but no tokenizer can encode it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_ID = 2**31 - 1


class RowError(Exception):
    """Reason why a row cannot be used.

    Args:
        code: The kind of problem, one word for counting: ``not_json``, ``not_an_object``, ``not_utf8``, ``bad_csv``,
            ``too_long``, ``wrong_keys``, ``no_messages``, ``bad_role``, ``role_order``, ``bad_content``,
            ``has_media``, ``bad_tool_call``, ``empty_answer``, ``no_answer``, ``bad_label``, ``bad_tokens``.
        message: One sentence for people. It may quote the row: sanitize it before display.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Message:
    """A turn of a conversation.

    Args:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: The text, as in the dataset.
        train: The row's own flag for an assistant's turn: trained on or not; None if it has no flag.
        reasoning: Reasoning of the assistant before its answer, if the dataset stores it separately.
        tool_calls: Calls of tools, each ``{"type": "function", "id": ..., "function": {"name", "arguments"}}`` with the
            arguments as an object; ``id`` only if the dataset has one.
        name: The tool that answers, or the speaker.
        tool_call_id: The call that a ``tool`` message answers.
    """

    role: str
    content: str
    train: bool | None = None
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    tool_call_id: str = ""

    def fields(self) -> dict[str, Any]:
        """The turn as chat templates expect it: ``role``, ``content``, and any other fields that are set."""
        values: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            values["reasoning_content"] = self.reasoning
        if self.tool_calls:
            values["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name:
            values["name"] = self.name
        if self.tool_call_id:
            values["tool_call_id"] = self.tool_call_id
        return values


@dataclass(frozen=True)
class Segment:
    """A segment of text without a chat template.

    Args:
        text: Text for the model; special tokens written in it are encoded as such.
        train: True if it is trained on.
    """

    text: str
    train: bool


@dataclass(frozen=True)
class Example:
    """A row ready for the chat template. Either ``messages``, ``text`` or ``ids`` is set.

    Args:
        messages: The conversation; in a preference pair, the prompt of both answers.
        text: Plain text.
        tools: Tools that the conversation may call, as JSON schemas.
        chosen: The better answer of a preference pair.
        rejected: The worse answer.
        label: True if the answer was good (KTO); None for rows without a label.
        ids: Token ids of a pre-tokenized row.
        labels: The id of each trained token, :data:`IGNORED_LABEL` elsewhere.
        segments: The segments of ``text``, if only parts of it are trained on; each is tokenized separately.
        is_framed: True to add the tokens that begin and end a text around the segments, as around any other plain text.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None
    ids: array[int] | None = None
    labels: array[int] | None = None
    segments: tuple[Segment, ...] = ()
    is_framed: bool = False

    @property
    def is_preference(self) -> bool:
        """True for a preference pair."""
        return bool(self.chosen)

    @property
    def characters(self) -> int:
        """Characters of its texts; limits the rows rendered and tokenized at once."""
        turns = (*self.messages, *self.chosen, *self.rejected)
        return len(self.text) + sum(len(turn.content) + len(turn.reasoning) for turn in turns)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages if self.is_preference else self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer, or the better answer of a preference pair; empty for plain text and tokens."""
        turns = self.chosen or self.messages
        return turns[-1].content if turns else ""


def make_conversation(messages: Iterable[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Example:
    """Check turns and make an example of them.

    A conversation is an optional system message, then user and assistant in turn, ending with the assistant. After
    tool calls come the answers of the tools, then the assistant again.

    Raises:
        RowError: ``no_messages``, ``bad_role``, ``role_order``, ``no_answer``, ``empty_answer`` or ``bad_content``.
    """
    turns = tuple(messages)
    _check_turns(turns)
    _check_order(turns)
    _check_answers(turns)
    return Example(messages=turns, tools=tuple(tools))


def make_text(text: str) -> Example:
    """Make an example of plain text.

    Raises:
        RowError: ``empty_answer`` if it is empty, ``bad_content`` if it is not valid Unicode.
    """
    if not text.strip():
        raise RowError("empty_answer", "The text is empty.")
    check_text(text, "The text")
    return Example(text=text)


def make_segments(segments: Iterable[Segment], *, is_framed: bool = False) -> Example:
    """Make an example of text in which only some segments are trained on.

    Raises:
        RowError: ``empty_answer`` if it is empty, ``no_answer`` if no segment is trained on, ``bad_content`` if it is
            not valid Unicode.
    """
    parts = tuple(segments)
    if not any(part.text for part in parts):
        raise RowError("empty_answer", "The segments are empty.")
    if not any(part.train and part.text for part in parts):
        raise RowError("no_answer", "No segment of the row is to be learned.")
    for number, part in enumerate(parts, 1):
        check_text(part.text, f"Segment {number}")
    return Example(text="".join(part.text for part in parts), segments=parts, is_framed=is_framed)


def make_preference(
    prompt: Iterable[Message],
    chosen: Iterable[Message],
    rejected: Iterable[Message],
    tools: Sequence[Mapping[str, Any]] = (),
) -> Example:
    """Make a preference pair: a better and a worse answer to the same prompt.

    Raises:
        RowError: As :func:`make_conversation`, for either answer.
    """
    asked, better, worse = tuple(prompt), tuple(chosen), tuple(rejected)
    for name, answer in (("chosen", better), ("rejected", worse)):
        if not answer:
            raise RowError("no_answer", f"The {name} answer is missing.")
        make_conversation([*asked, *answer])
    return Example(messages=asked, chosen=better, rejected=worse, tools=tuple(tools))


def make_labeled(messages: Iterable[Message], label: bool, tools: Sequence[Mapping[str, Any]] = ()) -> Example:
    """Make a conversation whose answer is labeled good or bad.

    Raises:
        RowError: As :func:`make_conversation`.
    """
    example = make_conversation(messages, tools)
    return Example(messages=example.messages, tools=example.tools, label=label)


def make_tokens(ids: Sequence[int], labels: Sequence[int] | None = None) -> Example:
    """Make an example of a pre-tokenized row.

    Args:
        ids: Token ids.
        labels: The id of each trained token, -100 elsewhere; None to train on all tokens.

    Raises:
        RowError: ``empty_answer`` without tokens, ``bad_tokens`` if they are not token ids, ``bad_label`` if the labels
            do not match them.
    """
    if not ids:
        raise RowError("empty_answer", "The row has no tokens.")
    if any(type(token) is not int or not 0 <= token <= _LARGEST_ID for token in ids):
        raise RowError("bad_tokens", "The tokens are not all whole numbers from 0 up.")
    kept = array("i", ids)
    if labels is None:
        return Example(ids=kept, labels=kept)
    if len(labels) != len(ids):
        raise RowError("bad_label", f"The row has {len(ids)} tokens and {len(labels)} labels.")
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if type(label) is not int or label not in (token, IGNORED_LABEL):
            raise RowError("bad_label", f"Label {place + 1} is neither its token nor {IGNORED_LABEL}.")
    return Example(ids=kept, labels=array("i", labels))


def check_text(text: str, where: str) -> None:
    """Refuse text that no tokenizer can encode.

    Raises:
        RowError: ``bad_content``.
    """
    if not text.isascii() and (found := _LONE_SURROGATE.search(text)):
        raise RowError(
            "bad_content", f"{where} holds half a character (\\u{ord(found.group()):04x}) at position {found.start()}."
        )


def _check_turns(turns: tuple[Message, ...]) -> None:
    if not turns:
        raise RowError("no_messages", "The row has no messages.")
    if len(turns) > MOST_MESSAGES:
        raise RowError("too_long", f"The row has {len(turns)} messages; up to {MOST_MESSAGES} are read.")
    for number, turn in enumerate(turns, 1):
        if turn.role not in ROLES:
            raise RowError(
                "bad_role",
                f"Message {number} has the role '{one_line(turn.role, 40)}'; the roles read are {', '.join(ROLES)}.",
            )
        check_text(turn.content, f"Message {number}")
        if turn.reasoning:
            check_text(turn.reasoning, f"The reasoning of message {number}")


def _check_order(turns: tuple[Message, ...]) -> None:
    spoken = turns[1:] if turns[0].role == "system" else turns
    first = len(turns) - len(spoken) + 1
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("no_answer", "No message is the assistant's, so there is nothing to learn.")
    wanted: tuple[str, ...] = ("user",)
    for position, turn in enumerate(spoken):
        if turn.role not in wanted:
            expected = " or ".join(f"{role}'s" for role in wanted)
            raise RowError("role_order", f"Message {first + position} is {turn.role}'s where {expected} turn is.")
        wanted = _next_roles(turn)
    if spoken[-1].role != "assistant":
        raise RowError("no_answer", f"The last message is the {spoken[-1].role}'s and has no answer.")


def _next_roles(turn: Message) -> tuple[str, ...]:
    """Roles that may follow a turn."""
    if turn.role == "user":
        return ("assistant",)
    if turn.role == "tool":
        return ("assistant", "tool")
    return ("tool",) if turn.tool_calls else ("user",)


def _check_answers(turns: tuple[Message, ...]) -> None:
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            raise RowError("empty_answer", f"Message {number}, an assistant's, is empty.")


def portions(examples: Sequence[Example], characters: int) -> Iterator[Sequence[Example]]:
    """Portions of at most ``characters`` characters, in order; a longer example makes a portion of its own."""
    begin, taken = 0, 0
    for place, example in enumerate(examples):
        size = example.characters
        if taken and taken + size > characters:
            yield examples[begin:place]
            begin, taken = place, 0
        taken += size
    if begin < len(examples):
        yield examples[begin:]
