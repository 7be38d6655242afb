"""Axolotl dataset types: their columns, and the conversion of their prompts to rows.

Axolotl's older types write a prompt around the columns: markers of turns, and for some an instruction sentence that
describes the task. Markers are the job of a chat template, so the model's own replaces them. An instruction sentence is
part of the trained text; types that have one are refused, and the sentence can be given in the entry instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core.config.choices import ColumnRole
from core.data.conversation import RowError
from core.data.formats.derived_columns import BuiltColumns, TextFormat, text_of
from core.data.formats.mapping import ColumnMap
from core.data.formats.turns import parsed
from core.errors import UserError
from core.text import one_line

_ALPACA: dict[ColumnRole, str] = {"user": "instruction", "context": "input", "assistant": "output"}
_ORCA: dict[ColumnRole, str] = {"system": "system_prompt", "user": "question", "assistant": "response"}
_ALPACA_SYSTEM: dict[ColumnRole, str] = {**_ALPACA, "system": "system"}
#: Prompt and answer types: their columns by role.
PLAIN: dict[str, dict[ColumnRole, str]] = {
    "alpaca": _ALPACA,
    "alpaca_instruct": _ALPACA,
    "alpaca_instruct.load_no_prompt": _ALPACA,
    "alpaca_chat": _ALPACA,
    "alpaca_chat.load_concise": _ALPACA,
    "alpaca_chat.load_no_prompt": _ALPACA,
    "alpaca_chat.load_qa": {"user": "question", "assistant": "answer"},
    "alpaca_chat.load_camel_ai": {"user": "message_1", "assistant": "message_2"},
    "alpaca_w_system": _ALPACA_SYSTEM,
    "alpaca_w_system.load_instruct": _ALPACA_SYSTEM,
    "alpaca_w_system.load_chat": _ALPACA_SYSTEM,
    "alpaca_w_system.load_open_orca": _ORCA,
    "alpaca_w_system.load_open_orca_chatml": _ORCA,
    "orcamini": _ORCA,
    "gpteacher": {"user": "instruction", "context": "input", "assistant": "response"},
    "oasst": {"user": "INSTRUCTION", "assistant": "RESPONSE"},
}
#: Types that compose the prompt or the answer from several columns and fixed words.
JOINED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "jeopardy": (("question", "category", "answer"), "{question}\n{category}", "what is {answer}"),
    "context_qa.load_v2": (
        ("context", "question", "answer"),
        "Context: {context}\nQuestion: {question}",
        "Answer: {answer}",
    ),
}
_SENTENCE = "writes sentences of Axolotl's own around each row, which are a part of what is learned"
_REWARD = "is for reward models, which are not trained here"
_PAIRS = "holds preference pairs written in a way of Axolotl's own; name a file with chosen and rejected instead"
#: Known types that are not supported, with the reason.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        [
            *("explainchoice", "concisechoice", "summarizetldr", "reflection", "context_qa", "context_qa.load_404"),
            *("creative_acr.load_answer", "creative_acr.load_critique", "creative_acr.load_revise"),
        ],
        _SENTENCE,
    ),
    **dict.fromkeys(["stepwise_supervised", "bradley_terry"], _REWARD),
    **dict.fromkeys(["chatml", "llama3", "zephyr", "chat_template", "user_defined"], _PAIRS),
}
_SENTENCE_HINT = (
    "Give your own sentence: type: {system_prompt: ..., field_instruction: ..., field_output: ...}, or write it into "
    "the rows."
)
_TYPE_KEYS = {
    *("system_prompt", "system_format", "field_system", "field_instruction", "field_input", "field_output"),
    *("format", "no_input_format", "field"),
}
# Trivial formats: the fields alone, which the chat template puts into turns.
_PARTS_ALONE = {
    "format": ("{instruction}", "{instruction}\n{input}"),
    "no_input_format": ("{instruction}",),
    "system_format": ("{system}",),
}
_DEFAULT_FORMATS = {
    "format": "{instruction} {input} ",
    "no_input_format": "{instruction} ",
    "system_format": "{system}",
}

Refuse = Callable[[str, Mapping[str, Any]], None]


def read_type(name: str, entry: Mapping[str, Any], where: str) -> tuple[str, ColumnMap | None]:
    """Format and columns of a dataset type other than ``chat_template``.

    Raises:
        UserError: If it is unknown or not supported.
    """
    base = name.partition(":")[0].removesuffix(".load")
    if base in ("completion", "pretrain"):
        return "auto", ColumnMap({"text": str(entry.get("field") or "text")})
    if base in PLAIN:
        return "auto", ColumnMap(PLAIN[base])
    if base in JOINED:
        return "auto", _joined(*JOINED[base])
    if base in _OTHERS:
        return "auto", _OTHERS[base]()
    if base == "input_output":
        return "segments", None
    if base.startswith("sharegpt"):
        raise UserError(f"{where} has the type sharegpt, which Axolotl has removed.", "Write type: chat_template.")
    reason = REFUSED.get(base) or REFUSED.get(base.partition(".")[0])
    if reason is not None:
        hint = _SENTENCE_HINT if reason == _SENTENCE else "Name the file itself with data.columns to look at it."
        raise UserError(f"{where} has the type {one_line(base, 40)}, which {reason}.", hint)
    known = ", ".join(["chat_template", "completion", "input_output", *PLAIN, *JOINED, *_OTHERS])
    raise UserError(
        f"{where} has the type {one_line(name, 40)}, which is not read here.",
        f"Name the file itself with data.columns. The types read are {known}.",
    )


def read_table(kind: Mapping[str, Any], where: str, refuse_unknown: Refuse) -> ColumnMap:
    """Columns of a custom type, a table of ``field_*`` keys and formats.

    Custom formats are kept as they are: their text is the prompt, without a chat template.

    Raises:
        UserError: If a key or a field of a format is unknown.
    """
    refuse_unknown(f"{where}: type", kind)
    wrong = next((key for key, value in kind.items() if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{where}: type.{wrong} is no text.", "Fix it.")
    if kind.get("field"):
        return ColumnMap({"text": kind["field"]})
    fields = {name: kind.get(f"field_{name}") or name for name in ("instruction", "input", "output", "system")}
    if any(kind.get(key) and kind[key] not in allowed for key, allowed in _PARTS_ALONE.items()):
        return _formatted(kind, fields, where)
    parts: dict[ColumnRole, str] = {
        "user": fields["instruction"],
        "context": fields["input"],
        "assistant": fields["output"],
        "system": fields["system"],
    }
    system = kind.get("system_prompt") or ""
    return ColumnMap(parts, {"system": system} if system.strip() else {})


def type_keys() -> set[str]:
    """Keys allowed in a custom type."""
    return set(_TYPE_KEYS)


def _joined(columns: tuple[str, ...], question: str, answer: str) -> ColumnMap:
    asked, answered = TextFormat.parse(question, columns, "question"), TextFormat.parse(answer, columns, "answer")

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        values = {column: text_of(data, column) for column in columns}
        return {"prompt": asked.fill(values), "completion": answered.fill(values) if values[columns[-1]] else ""}

    words = f"the question is {one_line(question, 80)}, the answer {one_line(answer, 80)}"
    return BuiltColumns(_needed(*columns), build=build, words=words)


def _formatted(kind: Mapping[str, Any], fields: Mapping[str, str], where: str) -> ColumnMap:
    """Columns for custom formats: rows whose prompt is plain text, without a chat template."""
    places = {"format": ("instruction", "input"), "no_input_format": ("instruction",), "system_format": ("system",)}
    formats = {
        key: TextFormat.parse(kind.get(key) or default, places[key], f"{where}: type.{key}")
        for key, default in _DEFAULT_FORMATS.items()
    }
    constant = kind.get("system_prompt") or ""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: text_of(data, column) for name, column in fields.items()}
        if fields["system"] not in data:
            values["system"] = constant
        prompt = formats["system_format"].fill(values) if values["system"] else ""
        prompt += formats["format" if values["input"] else "no_input_format"].fill(values)
        if not values["output"].strip():
            raise RowError("empty_answer", "The answer is empty.")
        return _raw(prompt, values["output"])

    words = f"the prompt is written as {one_line(kind.get('format') or _DEFAULT_FORMATS['format'], 80)}, no template"
    needed, optional = _needed(fields["instruction"], fields["output"]), (fields["input"], fields["system"])
    return BuiltColumns(needed, reads="segments", build=build, words=words, optional=optional)


def _metharme() -> ColumnMap:
    """Prompts that contain their own turn markers, so that no chat template may be applied."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        answer = text_of(data, "generation")
        if not answer.strip():
            raise RowError("empty_answer", "The generation is empty.")
        return _raw(text_of(data, "prompt"), answer)

    words = "prompt is the text before generation, no template"
    return BuiltColumns(_needed("prompt", "generation"), reads="segments", build=build, words=words)


def _pygmalion() -> ColumnMap:
    """Conversations with a character, whose description becomes the system message."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        messages = []
        for number, turn in enumerate(_turns(data, "conversations"), 1):
            role, text = turn.get("role"), turn.get("value")
            if not isinstance(text, str):
                raise RowError("bad_content", f"Message {number} has no text.")
            if role == "system":
                text = "Persona: " + text.removesuffix("\n<START>").strip()
            name = {"human": "user", "bot": "assistant"}.get(str(role), role)
            messages.append({"role": name, "content": text.strip()})
        return {"messages": messages}

    words = "role and value of conversations"
    return BuiltColumns(_needed("conversations"), reads="messages", build=build, words=words)


def _llama2_chat() -> ColumnMap:
    """Conversations of ``human`` and ``gpt``; texts are stripped, and an answer before any question is left out."""

    def build(data: Mapping[str, Any]) -> dict[str, Any]:
        messages = []
        for number, turn in enumerate(_turns(data, "conversations"), 1):
            text = turn.get("value")
            if not isinstance(text, str):
                raise RowError("bad_content", f"Message {number} has no text.")
            if text:
                messages.append({"role": turn.get("from"), "content": text.strip()})
        first = 1 if messages and messages[0]["role"] == "system" else 0
        if len(messages) > first and messages[first]["role"] == "gpt":
            del messages[first]
        return {"messages": messages}

    words = "from and value of conversations"
    return BuiltColumns(_needed("conversations"), reads="messages", build=build, words=words)


_OTHERS: dict[str, Callable[[], ColumnMap]] = {
    "metharme": _metharme,
    "pygmalion": _pygmalion,
    "llama2_chat": _llama2_chat,
}


def _needed(*columns: str) -> dict[ColumnRole, str]:
    """Required columns under arbitrary, distinct roles."""
    parts: tuple[ColumnRole, ...] = ("user", "assistant", "context", "system")
    return dict(zip(parts, columns, strict=False))


def _raw(prompt: str, answer: str) -> dict[str, Any]:
    """A row of text segments: the prompt, and the answer, which is trained on with an end-of-text token appended."""
    segments = [{"text": prompt, "label": False}, {"text": answer, "label": True}]
    return {"segments": segments, "add_special_tokens": True}


def _turns(data: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    turns = parsed(data.get(column))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("wrong_keys", f"The column '{one_line(column, 40)}' is no list of messages.")
    return turns
