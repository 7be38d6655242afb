"""Which of the usual dataset formats a file has, and a row of it as an example."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from core.data.conversation import Example, Message, RowError, make_conversation, make_text
from core.data.reader import Row
from core.errors import UserError
from core.text import one_line

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "text"]

#: Every format, and what its rows hold.
FORMATS: dict[Format, str] = {
    "messages": "messages: a list of objects with role and content",
    "sharegpt": "conversations: a list of objects with from and value",
    "alpaca": "instruction, perhaps input, and output",
    "prompt_completion": "prompt and completion, or question and answer",
    "text": "text",
}

_CONVERSATION_KEYS = ("messages", "conversations", "conversation")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
_CONTEXT_KEYS = ("input", "context")
_OUTPUT_KEYS = ("output", "response")
_KNOWN_COLUMNS = (
    *("messages", "conversations", "instruction", "input", "context", "output", "response"),
    *("prompt", "completion", "question", "answer", "text", "system", "history"),
)
_ROLE_NAMES = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human", "prompter"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bot", "model"], "assistant"),
}
#: Rows looked at to recognize a format.
SAMPLE = 200


@dataclass(frozen=True)
class Detection:
    """What was recognized, and why, in one sentence."""

    format: Format
    reason: str


def detect(rows: Iterable[Row], source: str = "The file") -> Detection:
    """Recognize the format from the first rows that can be read: what most of them fit.

    Args:
        rows: Rows, of which the first 200 are looked at.
        source: What the rows come from, for messages.

    Raises:
        UserError: If no row can be read or none fits; the message names the columns, the hint the nearest known one.
    """
    readable = _readable(rows, source)
    votes: dict[Format, int] = {}
    for data in readable:
        if (found := _format_of(data)) is not None:
            votes[found] = votes.get(found, 0) + 1
    if not votes:
        raise _unknown_columns(readable[0], source)
    winner = max(votes, key=lambda name: votes[name])
    return Detection(winner, f"{_share(votes[winner], len(readable))} {FORMATS[winner]}.")


def _share(count: int, total: int) -> str:
    if total == 1:
        return "The first row has"
    return f"Each of the first {total} rows has" if count == total else f"{count} of the first {total} rows have"


def choose(rows: Iterable[Row], wanted: str = "auto", source: str = "The file") -> Detection:
    """The format that the configuration asks for, or what :func:`detect` finds where it says ``auto``.

    Raises:
        UserError: As :func:`detect`, or if not one row is of the wanted format.
    """
    if wanted == "auto":
        return detect(rows, source)
    readable = _readable(rows, source)
    chosen = next((name for name in FORMATS if name == wanted), None)
    if chosen is None:
        raise UserError(f"There is no format {one_line(wanted, 60)}.", f"The formats are {', '.join(FORMATS)}.")
    if not any(_FITS[chosen](data) for data in readable):
        error = _unknown_columns(readable[0], source)
        raise UserError(f"{error.message[:-1]}, and {chosen} needs {FORMATS[chosen]}.", error.hint)
    return Detection(chosen, f"The configuration says {chosen}: {FORMATS[chosen]}.")


def row_example(row: Row, format: Format) -> Example:  # noqa: A002
    """A row of a file as an example; an unreadable one raises its own error.

    Raises:
        RowError: As :func:`to_example`, or with the row's own code.
    """
    if row.data is None:
        raise RowError(row.code, row.error)
    return to_example(row.data, format)


def to_example(data: Mapping[str, Any], format: Format) -> Example:  # noqa: A002
    """One row's columns as an example, checked.

    Raises:
        RowError: With a code from the list in :class:`~core.data.conversation.RowError`.
    """
    return _READERS[format](data)


def _readable(rows: Iterable[Row], source: str) -> list[Mapping[str, Any]]:
    readable: list[Mapping[str, Any]] = []
    first_error: Row | None = None
    for seen, row in enumerate(rows):
        if seen >= SAMPLE:
            break
        if row.data is not None:
            readable.append(row.data)
        elif first_error is None:
            first_error = row
    if readable:
        return readable
    if first_error is None:
        raise UserError(f"{source} has no rows.", "Give a file with at least one row.")
    raise UserError(
        f"{source} has no row that can be read: line {first_error.line}: {one_line(first_error.error, 300)}",
        "Each row must be one JSON object, or one record of a CSV with a header.",
    )


def _format_of(data: Mapping[str, Any]) -> Format | None:
    return next((name for name, fits in _FITS.items() if fits(data)), None)


def _turns(data: Mapping[str, Any]) -> list[Any] | None:
    return next((data[key] for key in _CONVERSATION_KEYS if isinstance(data.get(key), list)), None)


def _turns_have(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    def fits(data: Mapping[str, Any]) -> bool:
        turns = _turns(data)
        first = turns[0] if turns else None
        return isinstance(first, dict) and all(key in first for key in keys)

    return fits


def _fits_alpaca(data: Mapping[str, Any]) -> bool:
    return "instruction" in data and any(key in data for key in _OUTPUT_KEYS)


def _fits_pair(data: Mapping[str, Any]) -> bool:
    return _pair(data) is not None


def _pair(data: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in data and pair[1] in data), None)


_FITS: dict[Format, Callable[[Mapping[str, Any]], bool]] = {
    "messages": _turns_have("role"),
    "sharegpt": _turns_have("from", "value"),
    "alpaca": _fits_alpaca,
    "prompt_completion": _fits_pair,
    "text": lambda data: isinstance(data.get("text"), str),
}


def _unknown_columns(data: Mapping[str, Any], source: str) -> UserError:
    columns = [str(key) for key in data]
    shown = ", ".join(one_line(name, 40) for name in columns[:12]) + (", …" if len(columns) > 12 else "")
    message = f"{source} has rows of no known format: their columns are {shown or 'none'}."
    for name in columns:
        known = _nearest_column(name)
        if known is not None and known not in columns:
            return UserError(message, f"Did you mean {known}? Rename the column {one_line(name, 40)}.")
    every = "; ".join(f"{name} ({description})" for name, description in FORMATS.items())
    return UserError(message, f"The formats read are {every}.")


def _nearest_column(name: str) -> str | None:
    if name in _KNOWN_COLUMNS:
        return None
    found = difflib.get_close_matches(name.strip().lower()[:40], _KNOWN_COLUMNS, n=1, cutoff=0.75)
    return found[0] if found else None


def _wrong_keys(data: Mapping[str, Any], wanted: Format) -> RowError:
    shown = ", ".join(one_line(str(key), 40) for key in list(data)[:8]) or "none"
    return RowError("wrong_keys", f"The row needs {FORMATS[wanted]}; its columns are {shown}.")


def _content(value: Any, where: str) -> str:
    """A message's content as text; parts are joined, an absent one is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, list):
        raise RowError("bad_content", f"{where} is {_noun(value)}, not a text.")
    pieces = []
    for number, part in enumerate(value, 1):
        if isinstance(part, dict) and part.get("type", "text") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            kind = part.get("type") if isinstance(part, dict) else None
            noun = f"of type {one_line(kind, 40)}" if isinstance(kind, str) else "no text"
            raise RowError(
                "bad_content", f"Part {number} of {where[0].lower()}{where[1:]} is {noun}; only text is read."
            )
        pieces.append(part)
    return "".join(pieces)


def _noun(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, dict) else "a list"


def _message(turn: Any, number: int, role_key: str, content_key: str) -> Message:
    where = f"Message {number}"
    if not isinstance(turn, dict):
        raise RowError("wrong_keys", f"{where} is no object with {role_key} and {content_key}.")
    if role_key not in turn or (content_key not in turn and not turn.get("tool_calls")):
        missing = content_key if role_key in turn else role_key
        raise RowError("wrong_keys", f"{where} has no {missing}.")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise RowError("bad_content", f"{where} calls a tool; only text is read.")
    spoken = turn[role_key]
    if not isinstance(spoken, str):
        raise RowError("bad_role", f"{where} has a {role_key} that is no text.")
    role = _ROLE_NAMES.get(spoken.strip().lower(), spoken)
    return Message(role, _content(turn[content_key], where))


def _list_of_messages(turns: list[Any], role_key: str, content_key: str, first: int = 1) -> list[Message]:
    return [_message(turn, number, role_key, content_key) for number, turn in enumerate(turns, first)]


def _system(data: Mapping[str, Any]) -> list[Message]:
    """The system message that a column of its own holds, if one does."""
    text = _content(data.get("system", data.get("system_prompt")), "The system column")
    return [Message("system", text)] if text.strip() else []


def _with_system(data: Mapping[str, Any], messages: list[Message]) -> Example:
    # The conversation's own system message counts for more than the column.
    own = bool(messages) and messages[0].role == "system"
    return make_conversation(messages if own or not messages else [*_system(data), *messages])


def _read_turns(name: Format, role_key: str, content_key: str) -> Callable[[Mapping[str, Any]], Example]:
    def read(data: Mapping[str, Any]) -> Example:
        turns = _turns(data)
        if turns is None:
            raise _wrong_keys(data, name)
        return _with_system(data, _list_of_messages(turns, role_key, content_key))

    return read


def _read_alpaca(data: Mapping[str, Any]) -> Example:
    if not _fits_alpaca(data):
        raise _wrong_keys(data, "alpaca")
    question = _content(data["instruction"], "The instruction")
    context = _content(next((data[key] for key in _CONTEXT_KEYS if key in data), None), "The input")
    if context.strip():
        question = f"{question}\n{context}"
    answer = _content(next(data[key] for key in _OUTPUT_KEYS if key in data), "The output")
    turns = [Message("user", question), Message("assistant", answer)]
    return make_conversation([*_system(data), *_history(data.get("history")), *turns])


def _history(value: Any) -> list[Message]:
    """Alpaca's earlier turns: pairs of question and answer."""
    if value is None or value == "" or value == []:
        return []
    pairs_only = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not pairs_only:
        raise RowError("wrong_keys", "The history is no list of pairs of question and answer.")
    messages = []
    for number, (question, answer) in enumerate(value, 1):
        messages.append(Message("user", _content(question, f"Question {number} of the history")))
        messages.append(Message("assistant", _content(answer, f"Answer {number} of the history")))
    return messages


def _read_pair(data: Mapping[str, Any]) -> Example:
    pair = _pair(data)
    if pair is None:
        raise _wrong_keys(data, "prompt_completion")
    asked = _side(data[pair[0]], "user", f"The {pair[0]}", 1)
    answered = _side(data[pair[1]], "assistant", f"The {pair[1]}", len(asked) + 1)
    return _with_system(data, [*asked, *answered])


def _side(value: Any, role: str, where: str, first: int) -> list[Message]:
    """A prompt or a completion: a text, or a list of messages."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return _list_of_messages(value, "role", "content", first)
    return [Message(role, _content(value, where))]


def _read_text(data: Mapping[str, Any]) -> Example:
    text = data.get("text")
    if not isinstance(text, str):
        raise _wrong_keys(data, "text")
    return make_text(text)


_READERS: dict[Format, Callable[[Mapping[str, Any]], Example]] = {
    "messages": _read_turns("messages", "role", "content"),
    "sharegpt": _read_turns("sharegpt", "from", "value"),
    "alpaca": _read_alpaca,
    "prompt_completion": _read_pair,
    "text": _read_text,
}
