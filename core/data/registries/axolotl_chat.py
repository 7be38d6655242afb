"""Axolotl's dataset type ``chat_template``: its keys, and the conversion of its rows to messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config.choices import ColumnRole
from core.data.conversation import RowError, parsed
from core.data.formats.mapping import BuiltColumns, ColumnMap
from core.errors import UserError
from core.text import one_line

_END = "Remove it; the end of an answer is always learned, and no other"
_MAPPINGS = "Write message_property_mappings"
#: Keys without a counterpart: the only accepted values, which match the behavior here, and the hint.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "message_field_training_detail": ((None,), "Remove it; whole messages are learned or not"),
    **dict.fromkeys(("train_on_eos", "train_on_eot"), ((None, "turn"), _END)),
    "chat_template_jinja": ((None,), "Remove it, and set template.file"),
    **dict.fromkeys(("field_human", "field_model"), ((None,), _MAPPINGS)),
}
#: Axolotl's chat templates, and the built-in templates with the same, or nearly the same, output.
TEMPLATES: dict[str, str] = {
    **{name: name for name in ("chatml", "llama3", "alpaca")},
    **dict.fromkeys(["gemma", "gemma3", "gemma3n"], "gemma"),
    **dict.fromkeys(["phi_3", "phi_35"], "phi3"),
    **dict.fromkeys(["qwen2_vl", "qwen_25"], "qwen"),
    **dict.fromkeys(["mistral_v1", "mistral_v2v3", "mistral_v3_tekken"], "mistral"),
}
#: Supported message keys.
_PROPERTIES = ("role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id")
_ROLES = {"human": "user", "gpt": "assistant"}
_SPEAKERS: dict[str, ColumnRole] = {
    "user": "user_role",
    "assistant": "assistant_role",
    "system": "system_role",
    "tool": "tool_role",
}
_THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THOUGHTS = (("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")


@dataclass(frozen=True)
class ChatReading:
    """Conversion of Axolotl messages.

    Args:
        properties: Names of message keys in the rows.
        roles: Roles by the names of speakers in the rows.
        training: Key of the flag for trained messages; empty for none.
        learns: True if an answer without the flag is trained on.
        drop_system: True to drop a leading system message.
        split_thinking: True to split reasoning from the content.
    """

    properties: Mapping[str, str]
    roles: Mapping[str, str]
    training: str
    learns: bool
    drop_system: bool
    split_thinking: bool

    @classmethod
    def parse(cls, entry: Mapping[str, Any], where: str) -> ChatReading:
        """The conversion that an entry asks for.

        Raises:
            UserError: If a key asks for something unsupported.
        """
        return cls(
            _properties(entry, where),
            _roles(entry, where),
            _name(entry, "message_field_training", "", where),
            _learns(entry, where),
            _flag(entry, "drop_system_message", where),
            _flag(entry, "split_thinking", where),
        )

    def message(self, turn: Any, number: int) -> dict[str, Any]:
        """A message with the standard keys.

        Raises:
            RowError: If it is not a message, or asks for unsupported training.
        """
        if not isinstance(turn, dict):
            raise RowError("wrong_keys", f"Message {number} is not an object.")
        found = {key: turn[source] for key, source in self.properties.items() if turn.get(source) is not None}
        role = found.get("role")
        found["role"] = role = self.roles.get(role, role) if isinstance(role, str) else role
        for key in ("content", "reasoning_content"):
            _refuse_parts(found.get(key), number)
        if self.split_thinking and role == "assistant":
            _split_thoughts(found, number)
        wanted = turn.get(self.training) if self.training else None
        if wanted is not None and not isinstance(wanted, bool):
            key = one_line(self.training, 40)
            raise RowError("bad_label", f"Message {number} has a {key} that is neither true nor false.")
        if role == "assistant":
            found["train"] = self.learns if wanted is None else wanted
        elif wanted:
            speaker = one_line(str(role), 40)
            raise RowError("bad_role", f"Message {number}, the {speaker}'s, is to be learned, and only answers are.")
        return found


def read_chat(entry: Mapping[str, Any], where: str) -> ColumnMap:
    """Columns of an entry of type ``chat_template``.

    Raises:
        UserError: If a key asks for something unsupported.
    """
    _refuse_template(entry, where)
    reading = ChatReading.parse(entry, where)
    messages, system = _name(entry, "field_messages", "messages", where), _name(entry, "field_system", "system", where)
    tools = _name(entry, "field_tools", "tools", where)

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        turns = parsed(data[messages])
        if not isinstance(turns, list):
            raise RowError("wrong_keys", f"The column '{one_line(messages, 40)}' is not a list of messages.")
        read = [reading.message(turn, number) for number, turn in enumerate(turns, 1)]
        own = bool(read) and read[0]["role"] == "system"
        if reading.drop_system and own:
            read, own = read[1:], False
        row: dict[str, Any] = {"messages": read}
        if not own and not reading.drop_system and system in data:
            row["system"] = data[system]
        if data.get(tools):
            row["tools"] = data[tools]
        return row

    words = f"the messages are in {one_line(messages, 40)}, " + ", ".join(
        f"{key} is {one_line(source, 40)}" for key, source in reading.properties.items() if key in ("role", "content")
    )
    return BuiltColumns({"messages": messages}, reads="messages", build=build, words=words, optional=(system, tools))


def plain_columns(entry: Mapping[str, Any], where: str) -> ColumnMap | None:
    """Columns of such an entry, if ``data.columns`` can express them, else None.

    Raises:
        UserError: As :func:`read_chat`.
    """
    reading = ChatReading.parse(entry, where)
    renamed = {key for key, source in reading.properties.items() if key != source}
    asks_more = reading.training or not reading.learns or reading.drop_system or reading.split_thinking
    is_odd = any("," in name or name != name.strip() for name in reading.roles)
    if asks_more or is_odd or not renamed <= {"role", "content"}:
        return None
    parts: dict[ColumnRole, str] = {"messages": _name(entry, "field_messages", "messages", where)}
    if renamed:
        parts |= {"role": reading.properties["role"], "content": reading.properties["content"]}
    for target, part in _SPEAKERS.items():
        own = [name for name, meant in reading.roles.items() if meant == target]
        if any(_ROLES.get(name, name) != target for name in own):
            parts[part] = ",".join(own)
    parts["system"] = _name(entry, "field_system", "system", where)
    parts["tools"] = _name(entry, "field_tools", "tools", where)
    return ColumnMap(parts)


def _properties(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    mappings = entry.get("message_property_mappings") or {}
    if not isinstance(mappings, dict) or not all(isinstance(name, str) and name for name in mappings.values()):
        raise UserError(f"{where}: message_property_mappings is not a table of names.", "Write role and content.")
    if unknown := next((key for key in mappings if key not in _PROPERTIES), None):
        raise UserError(
            f"{where}: message_property_mappings has {one_line(str(unknown), 40)}, which no message has here.",
            f"The properties are {', '.join(_PROPERTIES)}.",
        )
    key = entry.get("template_thinking_key")
    if key is not None and key not in _THINKING_KEYS:
        raise UserError(
            f"{where} has template_thinking_key: {one_line(str(key), 40)}, which is not known.",
            f"Remove it; a template that reads {', '.join(_THINKING_KEYS)} needs no setting.",
        )
    found = {name: name for name in _PROPERTIES}
    found["role"] = _name(entry, "message_field_role", "role", where)
    found["content"] = _name(entry, "message_field_content", "content", where)
    found["reasoning_content"] = _name(entry, "field_thinking", "reasoning_content", where)
    return {**found, **mappings}


def _roles(entry: Mapping[str, Any], where: str) -> dict[str, str]:
    roles = entry.get("roles") or {}
    if not isinstance(roles, dict) or not roles.keys() <= _SPEAKERS.keys():
        raise UserError(f"{where}: roles may name {', '.join(_SPEAKERS)}.", "Fix it.")
    named = {}
    for target, sources in roles.items():
        for source in sources if isinstance(sources, list) else [sources]:
            named[str(source)] = target
    return {**_ROLES, **named}


def _learns(entry: Mapping[str, Any], where: str) -> bool:
    """True if answers are trained on by default.

    Raises:
        UserError: If turns other than the assistant's would be trained on, or no turns.
    """
    wanted = entry.get("roles_to_train")
    if wanted is None:
        return True
    if not isinstance(wanted, list) or not {_ROLES.get(str(role), str(role)) for role in wanted} <= {"assistant"}:
        raise UserError(
            f"{where} has roles_to_train: {one_line(str(wanted), 60)}; only answers are learned.",
            'Remove it; data.supervise = "all" learns the whole text.',
        )
    if not wanted and not entry.get("message_field_training"):
        raise UserError(f"{where} has no roles_to_train, so nothing is learned.", "Remove the key.")
    return bool(wanted)


def _refuse_template(entry: Mapping[str, Any], where: str) -> None:
    wanted = entry.get("chat_template")
    if wanted in (None, "tokenizer_default") or str(wanted).startswith("tokenizer_default_fallback_"):
        return
    name = TEMPLATES.get(str(wanted))
    raise UserError(
        f"{where} has chat_template: {one_line(str(wanted), 40)}, and an entry has none of its own here.",
        f'Remove it, and set template.name = "{name}".' if name else "Remove it, and set template.file.",
    )


def _name(entry: Mapping[str, Any], key: str, default: str, where: str) -> str:
    value = entry.get(key)
    if value is None or value == "":
        return default
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is not a name.", "Fix it.")
    return value


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool:
    value = entry.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} is not true or false.", "Fix it.")
    return value


def _refuse_parts(content: Any, number: int) -> None:
    """Refuse a content with parts that are not trained on.

    Raises:
        RowError: ``bad_content``.
    """
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and not part.get("train", part.get("weight", True)):
            raise RowError("bad_content", f"Message {number} has a part that is not to be learned; whole messages are.")


def _split_thoughts(message: dict[str, Any], number: int) -> None:
    """Move reasoning at the beginning of an answer to its own key.

    Raises:
        RowError: ``bad_content`` if there is text before it, which would be lost.
    """
    content = message.get("content")
    if not isinstance(content, str):
        return
    for begin, end in _THOUGHTS:
        if begin not in content or end not in content:
            continue
        before, _, rest = content.partition(begin)
        thought, found, rest = rest.partition(end)
        if before.strip() or not found:
            raise RowError("bad_content", f"Message {number} does not begin with its {begin}, and would lose text.")
        rest = rest.lstrip()
        if _SOLUTION[0] in rest and _SOLUTION[1] in rest:
            rest = rest.partition(_SOLUTION[0])[2].partition(_SOLUTION[1])[0].strip()
        message["reasoning_content"], message["content"] = thought.strip(), rest
        return
