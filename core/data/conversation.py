"""What a row means to training: a conversation, plain text, or one of the shapes that other methods learn from."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.text import one_line

ROLES = ("system", "user", "assistant", "tool")

#: The label of a token that is not learned, as pre-tokenized datasets write it.
IGNORED_LABEL = -100

#: Messages of a conversation that is read. To find what is learned, each answer is rendered with all that precedes it,
#: so that the time grows with the square of their number.
MOST_MESSAGES = 1000

#: Half of a UTF-16 pair; JSON can spell one, no tokenizer can encode it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_ID = 2**31 - 1


class RowError(Exception):
    """Why one row cannot be used.

    Args:
        code: The kind of problem, one word for counting: ``not_json``, ``not_an_object``, ``not_utf8``, ``bad_csv``,
            ``too_long``, ``wrong_keys``, ``no_messages``, ``bad_role``, ``role_order``, ``bad_content``,
            ``bad_tool_call``, ``empty_answer``, ``no_answer``, ``bad_label``, ``bad_tokens``.
        message: One sentence for people. It may quote the row: sanitize it before a terminal sees it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Message:
    """One turn.

    Args:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: The text, as the dataset has it.
        train: Whether the row says that an assistant's turn is learned or not; None where it says nothing.
        reasoning: What the assistant thought before it answered, where the dataset keeps that apart.
        tool_calls: Calls of tools, each ``{"type": "function", "id": ..., "function": {"name", "arguments"}}`` with the
            arguments as an object; ``id`` only where the dataset has one.
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
        """The turn as chat templates expect it: ``role``, ``content``, and what else it has."""
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
    """A stretch of a text that no template is put around.

    Args:
        text: As the model is given it; special tokens written in it are those tokens.
        train: Whether it is learned.
    """

    text: str
    train: bool


@dataclass(frozen=True)
class Example:
    """One row, ready for the template: either ``messages``, ``text`` or ``ids``.

    Args:
        messages: The conversation; of a preference pair, what both answers follow.
        text: Plain text.
        tools: Tools that the conversation may call, as JSON schemas.
        chosen: The better answer of a preference pair.
        rejected: The worse one.
        label: Whether the answer was good (KTO); None for other rows.
        ids: A row that is tokens already.
        labels: The same tokens where they are learned, :data:`IGNORED_LABEL` where not.
        segments: What ``text`` is made of, where only parts of it are learned; each is tokenized by itself.
        is_framed: Whether the tokens that begin and end a text are put around the segments; other plain text has them.
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
        """Whether the row compares two answers."""
        return bool(self.chosen)

    @property
    def characters(self) -> int:
        """Characters of its texts, for how much is rendered and tokenized at once."""
        turns = (*self.messages, *self.chosen, *self.rejected)
        return len(self.text) + sum(len(turn.content) + len(turn.reasoning) for turn in turns)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages if self.is_preference else self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer, of a preference pair the better one; empty for plain text and tokens."""
        turns = self.chosen or self.messages
        return turns[-1].content if turns else ""


def make_conversation(messages: Iterable[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Example:
    """Check the turns and make an example of them.

    A conversation is: perhaps one system message, then user and assistant in turn, an assistant's last. Where the
    assistant calls tools, their answers and then the assistant follow.

    Raises:
        RowError: ``no_messages``, ``bad_role``, ``role_order``, ``no_answer``, ``empty_answer`` or ``bad_content``.
    """
    turns = tuple(messages)
    _check_turns(turns)
    _check_order(turns)
    _check_answers(turns)
    return Example(messages=turns, tools=tuple(tools))


def make_text(text: str) -> Example:
    """An example of plain text.

    Raises:
        RowError: ``empty_answer`` if nothing is in it, ``bad_content`` if it is no valid Unicode.
    """
    if not text.strip():
        raise RowError("empty_answer", "The text is empty.")
    check_text(text, "The text")
    return Example(text=text)


def make_segments(segments: Iterable[Segment], *, is_framed: bool = False) -> Example:
    """An example of text of which only parts are learned.

    Raises:
        RowError: ``empty_answer`` if nothing is in it, ``no_answer`` if nothing of it is learned, ``bad_content`` if it
            is no valid Unicode.
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
    """A better and a worse answer to the same prompt.

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
    """A conversation whose answer is called good or bad.

    Raises:
        RowError: As :func:`make_conversation`.
    """
    example = make_conversation(messages, tools)
    return Example(messages=example.messages, tools=example.tools, label=label)


def make_tokens(ids: Sequence[int], labels: Sequence[int] | None = None) -> Example:
    """A row that is tokens already.

    Args:
        ids: The tokens.
        labels: For each of them the token itself, or -100 where it is not learned; absent: all are learned.

    Raises:
        RowError: ``bad_tokens`` if they are no tokens, ``bad_label`` if the labels are not theirs.
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
    """Refuse what no tokenizer can encode.

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
    """Whose turn it is after one."""
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
    """Examples in their order, as many at once as have so many characters together; of longer ones each by itself."""
    begin, taken = 0, 0
    for place, example in enumerate(examples):
        size = example.characters
        if taken and taken + size > characters:
            yield examples[begin:place]
            begin, taken = place, 0
        taken += size
    if begin < len(examples):
        yield examples[begin:]
