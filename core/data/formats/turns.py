"""Message parsing: messages of all known spellings to :class:`~core.data.conversation.Message`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.data.conversation import Message, RowError
from core.text import one_line

#: Columns that hold a conversation.
CONVERSATION_KEYS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

#: Role of a message whose content is a tool call, as in ShareGPT.
CALL_ROLE = "function_call"
ROLE_NAMES = {
    **dict.fromkeys(["system", "developer"], "system"),
    **dict.fromkeys(["user", "human", "prompter"], "user"),
    **dict.fromkeys(["assistant", "gpt", "chatgpt", "bot", "model", "ai"], "assistant"),
    **dict.fromkeys(["tool", "function", "observation", "ipython", "function_response"], "tool"),
    **dict.fromkeys([CALL_ROLE, "tool_call"], CALL_ROLE),
}


def parsed(value: Any) -> Any:
    """A list or object, parsed if stored as JSON text; any other value unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def find_turns(data: Mapping[str, Any]) -> list[Any] | None:
    """List of messages of a row, or None."""
    found = _conversation(data)
    return None if found is None else found[1]


def turns_column(data: Mapping[str, Any]) -> str | None:
    """Column with the messages of a row, or None."""
    found = _conversation(data)
    return None if found is None else found[0]


def _conversation(data: Mapping[str, Any]) -> tuple[str, list[Any]] | None:
    for key in CONVERSATION_KEYS:
        if isinstance(found := parsed(data.get(key)), list):
            return key, found
    return None


def turn_keys(turn: Any) -> tuple[str, str] | None:
    """Keys of the role and the content of a message; None for other values."""
    if not isinstance(turn, dict):
        return None
    role = next((key for key in ROLE_KEYS if key in turn), None)
    if role is None:
        return None
    content = next((key for key in CONTENT_KEYS if key in turn), None)
    if content is None and not (turn.get("tool_calls") or turn.get("function_call")):
        return None
    return role, content or "content"


def is_spelled_out(value: Any) -> bool:
    """True if a value is unambiguously a list of messages, each with a known role and a content."""
    return isinstance(value, list) and all(
        isinstance(turn, dict) and "content" in turn and str(turn.get("role")).lower() in ROLE_NAMES for turn in value
    )


def is_pair_turn(turn: Any) -> bool:
    """True for an object with a question and its answer, ``{"human": ..., "assistant": ...}``."""
    return isinstance(turn, dict) and any(
        asked in turn and answered in turn for asked in ("human", "user") for answered in ("assistant", "gpt", "bot")
    )


def read_messages(turns: list[Any], keys: tuple[str, str] | None = None, first: int = 1) -> list[Message]:
    """Parse a list of messages.

    Args:
        turns: The list in the row.
        keys: Keys of role and content; None to recognize them in each message.
        first: Number of the first message, for errors.

    Raises:
        RowError: ``wrong_keys``, ``bad_role``, ``bad_content`` or ``bad_tool_call``.
    """
    messages: list[Message] = []
    for number, turn in enumerate(turns, first):
        if keys is None and is_pair_turn(turn) and turn_keys(turn) is None:
            asked = next(key for key in ("human", "user") if key in turn)
            answered = next(key for key in ("assistant", "gpt", "bot") if key in turn)
            messages.append(Message("user", read_content(turn[asked], f"The {asked} of turn {number}")))
            messages.append(Message("assistant", read_content(turn[answered], f"The {answered} of turn {number}")))
        else:
            messages.append(_read_message(turn, number, keys or turn_keys(turn) or ("role", "content")))
    return messages


def _read_message(turn: Any, number: int, keys: tuple[str, str]) -> Message:
    where = f"Message {number}"
    role_key, content_key = keys
    if not isinstance(turn, dict):
        raise RowError("wrong_keys", f"{where} is no object with {role_key} and {content_key}.")
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    calls = calls if isinstance(calls, list) else [calls]
    if role_key not in turn or (content_key not in turn and not calls):
        missing = content_key if role_key in turn else role_key
        raise RowError("wrong_keys", f"{where} has no {missing}.")
    spoken = turn[role_key]
    if not isinstance(spoken, str):
        raise RowError("bad_role", f"{where} has a {role_key} that is no text.")
    role = ROLE_NAMES.get(spoken.strip().lower(), spoken)
    content, thoughts, called = _split_parts(turn.get(content_key), where)
    if called and role != "assistant":
        raise RowError("bad_tool_call", f"{where} calls a tool, and is not the assistant's.")
    calls = [*calls, *called]
    if role == CALL_ROLE:
        # The content is the call, or a list of calls.
        calls, content, role = parsed(content), "", "assistant"
    reasoning = next((text for key in REASONING_KEYS if isinstance(text := turn.get(key), str) and text), thoughts)
    name, call_id = turn.get("name"), turn.get("tool_call_id")
    return Message(
        role,
        content,
        train=_train_flag(turn, role, where),
        reasoning=reasoning if role == "assistant" else "",
        tool_calls=_read_calls(calls, where) if calls else (),
        name=name if isinstance(name, str) else "",
        tool_call_id=call_id if isinstance(call_id, str) else "",
    )


def _train_flag(turn: Mapping[str, Any], role: str, where: str) -> bool | None:
    """Flag of a message in the dataset: trained on or not; None without a flag.

    It is ``train`` or ``training``, LLaMA-Factory's ``loss_weight`` (for the assistant's turns only), or OpenAI's
    ``weight``.

    Raises:
        RowError: ``bad_label`` for a ``loss_weight`` other than 0 and 1.
    """
    for key in ("train", "training"):
        if isinstance(turn.get(key), bool):
            return bool(turn[key])
    if role == "assistant" and (weight := turn.get("loss_weight")) is not None:
        if not isinstance(weight, (int, float)) or weight not in (0, 1):
            raise RowError(
                "bad_label",
                f"{where} has the loss_weight {one_line(str(weight), 40)}, and a message is learned (1) or not (0), as "
                "a whole.",
            )
        return bool(weight)
    weight = turn.get("weight")
    return bool(weight) if isinstance(weight, (int, float)) and weight in (0, 1) else None


def read_content(value: Any, where: str) -> str:
    """Content of a message as text, with parts joined; empty if missing.

    Raises:
        RowError: ``bad_content``.
    """
    text, _, calls = _split_parts(value, where)
    if calls:
        raise RowError("bad_content", f"{where} holds a call of a tool, not a text.")
    return text


def _split_parts(value: Any, where: str) -> tuple[str, str, list[Any]]:
    """Text, reasoning and tool calls of a content.

    The text of a part is under ``text`` in OpenAI's form and under ``value`` in LLaMA-Factory's.
    """
    if isinstance(value, str):
        return value, "", []
    if value is None:
        return "", "", []
    if not isinstance(value, list):
        raise RowError("bad_content", f"{where} is {_noun(value)}, not a text.")
    spoken: list[str] = []
    thought: list[str] = []
    calls: list[Any] = []
    for number, part in enumerate(value, 1):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if isinstance(part, dict) and kind in ("thinking", "reasoning"):
            text, into = part.get("thinking", part.get("text", part.get("value"))), thought
        elif isinstance(part, dict) and kind == "tool_call":
            calls.append(parsed(part.get("value")))
            continue
        elif isinstance(part, dict) and kind in ("text", "input_text", "output_text"):
            text, into = part.get("text", part.get("value")), spoken
        else:
            text, into = part, spoken
        if not isinstance(text, str):
            noun = f"of type {one_line(kind, 40)}" if isinstance(part, dict) and isinstance(kind, str) else "no text"
            raise RowError(
                "bad_content", f"Part {number} of {where[0].lower()}{where[1:]} is {noun}; only text is read."
            )
        into.append(text)
    return "".join(spoken), "".join(thought), calls


def _noun(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "an object" if isinstance(value, dict) else "a list"


def _read_calls(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    calls = value if isinstance(value, list) else [value]
    return tuple(_read_call(call, where) for call in calls)


def _read_call(call: Any, where: str) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise RowError("bad_tool_call", f"{where} calls a tool that has no name.")
    arguments = function.get("arguments", function.get("parameters"))
    if arguments is None or arguments == "":
        arguments = {}
    arguments = parsed(arguments)
    if not isinstance(arguments, dict):
        raise RowError("bad_tool_call", f"{where} calls {one_line(name, 40)} with arguments that are no JSON object.")
    read: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if isinstance(call.get("id"), str) and call["id"]:
        read["id"] = call["id"]
    return read


def read_tools(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Tools declared in a row, in OpenAI's schema.

    Raises:
        RowError: ``bad_tool_call``.
    """
    value = parsed(next((data[key] for key in ("tools", "functions") if data.get(key)), None))
    if value is None or value == "":
        return ()
    tools = value if isinstance(value, list) else [value]
    read: list[Mapping[str, Any]] = []
    for number, item in enumerate(tools, 1):
        tool = parsed(item)
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("bad_tool_call", f"Tool {number} of the row is no object with a name.")
        read.append({"type": "function", "function": function})
    return tuple(read)


def read_system(data: Mapping[str, Any]) -> list[Message]:
    """System message from a column of its own, if any."""
    text = read_content(data.get("system", data.get("system_prompt")), "The system column")
    return [Message("system", text)] if text.strip() else []


def with_system(data: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Messages preceded by the message of the system column, unless they begin with a system message."""
    own = bool(messages) and messages[0].role == "system"
    return messages if own or not messages else [*read_system(data), *messages]


def read_history(data: Mapping[str, Any]) -> list[Message]:
    """Earlier turns in Alpaca's ``history`` column, pairs of question and answer.

    Raises:
        RowError: ``wrong_keys`` or ``bad_content``.
    """
    value = parsed(data.get("history"))
    if value is None or value == "" or value == []:
        return []
    pairs_only = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    if not pairs_only:
        raise RowError("wrong_keys", "The history is no list of pairs of question and answer.")
    messages = []
    for number, (question, answer) in enumerate(value, 1):
        messages.append(Message("user", read_content(question, f"Question {number} of the history")))
        messages.append(Message("assistant", read_content(answer, f"Answer {number} of the history")))
    return messages
