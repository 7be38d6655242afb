"""Training examples: conversations, plain text, preference pairs, labeled answers and tokens, made from rows.

Messages of all known spellings are read as a :class:`Message`.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.exported_chats import exported_turns
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
    is_single = sum(turn.role == "assistant" for turn in turns) == 1
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            which = "answer" if is_single else f"assistant's message {number}"
            raise RowError("empty_answer", f"The {which} is empty.")


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


#: Characters within which a transcript begins with its first mark.
_TRANSCRIPT_START = 40
#: Marks before the turns of a transcript: hh-rlhf's, and Guanaco's.
_TURN_MARKS = (re.compile(r"(?:^|\n\n)\s{0,9}(Human|Assistant):"), re.compile(r"### ?(Human|Assistant):"))


def read_transcript(text: str) -> list[Message] | None:
    """Turns of a conversation written as one text, ``\\n\\nHuman: ...\\n\\nAssistant: ...``; None for other texts."""
    for mark in _TURN_MARKS if "Assistant:" in text and "Human:" in text[:_TRANSCRIPT_START] else ():
        before, *pieces = mark.split(text)
        roles, contents = pieces[::2], pieces[1::2]
        if not before.strip() and roles[:1] == ["Human"] and "Assistant" in roles:
            return [Message(ROLE_NAMES[role.lower()], said.strip()) for role, said in zip(roles, contents, strict=True)]
    return None


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
    return exported_turns(data)


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
        raise RowError("wrong_keys", f"{where} is not an object with {role_key} and {content_key}.")
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
            raise RowError("bad_tool_call", f"Tool {number} of the row is not an object with a name.")
        read.append({"type": "function", "function": function})
    return tuple(read)


def with_system(data: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Messages preceded by the message of the system column, unless they begin with a system message."""
    if not messages or messages[0].role == "system":
        return messages
    text = read_content(data.get("system", data.get("system_prompt")), "The system column")
    return [Message("system", text), *messages] if text.strip() else messages


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
        raise RowError("wrong_keys", "The history is not a list of pairs of question and answer.")
    messages = []
    for number, (question, answer) in enumerate(value, 1):
        messages.append(Message("user", read_content(question, f"Question {number} of the history")))
        messages.append(Message("assistant", read_content(answer, f"Answer {number} of the history")))
    return messages
