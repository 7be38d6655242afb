"""What a row means to training: a conversation, or plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from core.text import one_line

ROLES = ("system", "user", "assistant")

#: Half of a UTF-16 pair; JSON can spell one, no tokenizer can encode it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(Exception):
    """Why one row cannot be used.

    Args:
        code: The kind of problem, one word for counting: ``not_json``, ``not_an_object``, ``not_utf8``, ``bad_csv``,
            ``too_long``, ``wrong_keys``, ``no_messages``, ``bad_role``, ``role_order``, ``bad_content``,
            ``empty_answer``, ``no_answer``.
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
        role: ``system``, ``user`` or ``assistant``.
        content: The text, as the dataset has it.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row, ready for the template: either ``messages`` or ``text``, the other is empty."""

    messages: tuple[Message, ...] = ()
    text: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer; empty for plain text."""
        return self.messages[-1].content if self.messages else ""


def make_conversation(messages: Iterable[Message]) -> Example:
    """Check the turns and make an example of them.

    A conversation is: perhaps one system message, then user and assistant in turn, an assistant's last.

    Raises:
        RowError: ``no_messages``, ``bad_role``, ``role_order``, ``no_answer``, ``empty_answer`` or ``bad_content``.
    """
    turns = tuple(messages)
    if not turns:
        raise RowError("no_messages", "The row has no messages.")
    for number, turn in enumerate(turns, 1):
        if turn.role not in ROLES:
            raise RowError(
                "bad_role",
                f"Message {number} has the role '{one_line(turn.role, 40)}'; the roles read are {', '.join(ROLES)}.",
            )
        check_text(turn.content, f"Message {number}")
    _check_order(turns)
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.content.strip():
            raise RowError("empty_answer", f"Message {number}, an assistant's, is empty.")
    return Example(messages=turns)


def make_text(text: str) -> Example:
    """An example of plain text.

    Raises:
        RowError: ``empty_answer`` if nothing is in it, ``bad_content`` if it is no valid Unicode.
    """
    if not text.strip():
        raise RowError("empty_answer", "The text is empty.")
    check_text(text, "The text")
    return Example(text=text)


def check_text(text: str, where: str) -> None:
    """Refuse what no tokenizer can encode.

    Raises:
        RowError: ``bad_content``.
    """
    if not text.isascii() and (found := _LONE_SURROGATE.search(text)):
        raise RowError(
            "bad_content", f"{where} holds half a character (\\u{ord(found.group()):04x}) at position {found.start()}."
        )


def _check_order(turns: tuple[Message, ...]) -> None:
    spoken = turns[1:] if turns[0].role == "system" else turns
    first = len(turns) - len(spoken) + 1
    if all(turn.role != "assistant" for turn in turns):
        raise RowError("no_answer", "No message is the assistant's, so there is nothing to learn.")
    for position, turn in enumerate(spoken):
        wanted = "assistant" if position % 2 else "user"
        if turn.role != wanted:
            raise RowError("role_order", f"Message {first + position} is {turn.role}'s where {wanted}'s turn is.")
    if spoken[-1].role == "user":
        raise RowError("no_answer", "The last message is the user's and has no answer.")
