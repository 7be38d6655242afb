"""Row schemas of the dataset formats: a predicate and a parser for each."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config.choices import FORMATS, Format
from core.data.conversation import (
    Example,
    Message,
    RowError,
    Segment,
    make_conversation,
    make_labeled,
    make_preference,
    make_segments,
    make_text,
    make_tokens,
)
from core.data.formats.turns import (
    CONVERSATION_KEYS,
    ROLE_NAMES,
    find_turns,
    is_pair_turn,
    is_spelled_out,
    parsed,
    read_content,
    read_history,
    read_messages,
    read_tools,
    turn_keys,
    turns_column,
    with_system,
)
from core.text import one_line

_PAIRS = (
    *(("prompt", answer) for answer in ("completion", "response", "answer", "output")),
    *(("question", answer) for answer in ("answer", "response", "output")),
    *(("query", answer) for answer in ("response", "answer", "output")),
    *(("input", answer) for answer in ("output", "target", "response")),
    *(("inputs", "targets"), ("problem", "solution"), ("user", "assistant"), ("human", "assistant")),
    ("source", "target"),
)
_CONTEXT_KEYS = ("input", "context")
_OUTPUT_KEYS = ("output", "response")
_LABEL_KEYS = ("label", "kto_tag")
_CHOSEN_KEYS, _REJECTED_KEYS = ("chosen", "chosen_messages"), ("rejected", "rejected_messages")
#: Most characters of a column name compared.
_NAME_LENGTH = 40
_KNOWN_COLUMNS = (
    *("messages", "conversations", "instruction", "input", "context", "output", "response"),
    *("prompt", "completion", "question", "answer", "text", "system", "history"),
    *("chosen", "rejected", "chosen_messages", "rejected_messages", "label", "input_ids"),
)
_ASKED_KEYS = ("prompt", "question", "query", "instruction", "input")
#: Names of a question beside a text; not ``source`` and ``user``, which may be the origin of a text.
_QUESTION_KEYS = ("prompt", "question", "query", "instruction", "input", "inputs", "problem")
_TOOL_KEYS = ("tools", "functions")
#: Columns that formats read besides their roles.
_FURTHER_COLUMNS: dict[Format, tuple[str, ...]] = {
    "segments": ("segments", "add_special_tokens"),
    "tokens": ("attention_mask",),
}


def format_of(data: Mapping[str, Any]) -> Format | None:
    """The first format that a row fits; None if there is none."""
    return next((name for name, fits in FITS.items() if fits(data)), None)


def find_parts(data: Mapping[str, Any], wanted: Format) -> dict[str, str]:
    """Columns of a row by role in a format (see :data:`core.config.choices.ColumnRole`)."""
    known: dict[str, tuple[str, ...]] = {}
    if wanted in ("text", "tokens"):
        known = {"text": ("text",)} if wanted == "text" else {"input_ids": ("input_ids",), "labels": ("labels",)}
    elif wanted == "segments":
        known = {}
    elif (column := turns_column(data)) is not None or wanted in ("messages", "sharegpt"):
        known = {"messages": CONVERSATION_KEYS if column is None else (column,)}
    elif wanted == "preference" and "instruction" in data:
        known = {"user": ("instruction",), "context": _CONTEXT_KEYS}
    elif wanted == "preference":
        known = {"user": _ASKED_KEYS}
    elif _fits_alpaca(data):
        known = {"user": ("instruction",), "assistant": _OUTPUT_KEYS, "context": _CONTEXT_KEYS}
    elif (pair := _pair(data)) is not None:
        known = {"user": (pair[0],), "assistant": (pair[1],)}
    if wanted not in ("text", "tokens", "segments"):
        known["system"] = ("system", "system_prompt")
        if wanted != "alpaca":
            known["tools"] = _TOOL_KEYS
    if "user" in known:
        known["history"] = ("history",)
    if wanted == "preference":
        known |= {"chosen": _CHOSEN_KEYS, "rejected": _REJECTED_KEYS}
    elif wanted == "kto":
        known["label"] = tuple(key for key in _LABEL_KEYS if isinstance(data.get(key), bool))
    return {part: key for part, keys in known.items() if (key := next((key for key in keys if key in data), None))}


def read_columns(data: Mapping[str, Any], wanted: Format) -> frozenset[str]:
    """Columns of a row that a format reads, without a column mapping."""
    parts = find_parts(data, wanted)
    if wanted == "preference" and _is_whole(parsed(_first(data, _CHOSEN_KEYS))):
        parts = {part: column for part, column in parts.items() if part in ("chosen", "rejected", "tools")}
    read = {*parts.values(), *_FURTHER_COLUMNS.get(wanted, ())}
    # If one of them is empty, the other is read.
    return frozenset(read | ({*_TOOL_KEYS} if "tools" in parts else set()))


def question_beside_text(data: Mapping[str, Any]) -> str:
    """Column with a question in a row with a text, which may be its answer; empty without one."""
    if not isinstance(data.get("text"), str):
        return ""
    for key in _QUESTION_KEYS:
        asked = data.get(key)
        if isinstance(asked, (str, list, dict)) and (asked.strip() if isinstance(asked, str) else asked):
            return key
    return ""


def _is_whole(answer: Any) -> bool:
    """True if an answer of a preference pair is a whole conversation, including the question."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    keys = turn_keys(first)
    return keys is not None and ROLE_NAMES.get(str(first[keys[0]]).strip().lower()) in ("user", "system")


def _first(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((data[key] for key in keys if key in data), None)


def _pair(data: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in data and pair[1] in data), None)


def _first_turn_keys(data: Mapping[str, Any]) -> tuple[str, str] | None:
    turns = find_turns(data)
    return turn_keys(turns[0]) if turns else None


def _fits_messages(data: Mapping[str, Any]) -> bool:
    return _first_turn_keys(data) == ("role", "content")


def _fits_sharegpt(data: Mapping[str, Any]) -> bool:
    turns = find_turns(data)
    if not turns:
        return False
    return is_pair_turn(turns[0]) or turn_keys(turns[0]) not in (None, ("role", "content"))


def _fits_alpaca(data: Mapping[str, Any]) -> bool:
    return "instruction" in data and any(key in data for key in _OUTPUT_KEYS)


def _fits_tokens(data: Mapping[str, Any]) -> bool:
    ids = data.get("input_ids")
    return isinstance(ids, list) and all(isinstance(token, int) for token in ids[:8])


def _fits_segments(data: Mapping[str, Any]) -> bool:
    segments = parsed(data.get("segments"))
    if not isinstance(segments, list) or not segments:
        return False
    return all(isinstance(item, dict) and {"text", "label"} <= item.keys() for item in segments[:8])


def _fits_preference(data: Mapping[str, Any]) -> bool:
    return all(isinstance(_first(data, keys), (str, list, dict)) for keys in (_CHOSEN_KEYS, _REJECTED_KEYS))


def _fits_kto(data: Mapping[str, Any]) -> bool:
    labeled = any(isinstance(data.get(key), bool) for key in _LABEL_KEYS)
    return labeled and (find_turns(data) is not None or _fits_alpaca(data) or _pair(data) is not None)


#: Predicates of the formats; specific formats come first.
FITS: dict[Format, Callable[[Mapping[str, Any]], bool]] = {
    "tokens": _fits_tokens,
    "segments": _fits_segments,
    "preference": _fits_preference,
    "kto": _fits_kto,
    "messages": _fits_messages,
    "sharegpt": _fits_sharegpt,
    "alpaca": _fits_alpaca,
    "prompt_completion": lambda data: _pair(data) is not None,
    "text": lambda data: isinstance(data.get("text"), str),
}


def _wrong_keys(data: Mapping[str, Any], wanted: Format) -> RowError:
    shown = ", ".join(one_line(str(key), 40) for key in list(data)[:8]) or "none"
    guess = misspelled_column([str(key) for key in list(data)[:8]])
    meant = f" Did you mean {guess[1]} by {one_line(guess[0], 40)}?" if guess is not None else ""
    return RowError("wrong_keys", f"The row needs {FORMATS[wanted]}; its columns are {shown}.{meant}")


def misspelled_column(columns: Sequence[str]) -> tuple[str, str] | None:
    """A column with almost the name of a missing known column, and that name; None without one."""
    for name in columns:
        known = _nearest_column(name[:_NAME_LENGTH])
        if known is not None and known not in columns:
            return name, known
    return None


@functools.lru_cache(maxsize=1024)
def _nearest_column(name: str) -> str | None:
    if name in _KNOWN_COLUMNS:
        return None
    found = difflib.get_close_matches(name.strip().lower(), _KNOWN_COLUMNS, n=1, cutoff=0.75)
    return found[0] if found else None


def _turns_of(data: Mapping[str, Any], wanted: Format) -> list[Message]:
    turns = find_turns(data)
    if turns is None:
        raise _wrong_keys(data, wanted)
    keys = ("role", "content") if wanted == "messages" else None
    return with_system(data, read_messages(turns, keys))


def _alpaca_question(data: Mapping[str, Any]) -> list[Message]:
    question = read_content(data.get("instruction"), "The instruction")
    context = read_content(_first(data, _CONTEXT_KEYS), "The input")
    if context.strip():
        question = f"{question}\n{context}"
    return [*read_history(data), Message("user", question)]


def _alpaca_turns(data: Mapping[str, Any]) -> list[Message]:
    if not _fits_alpaca(data):
        raise _wrong_keys(data, "alpaca")
    answer = read_content(_first(data, _OUTPUT_KEYS), "The output")
    return with_system(data, [*_alpaca_question(data), Message("assistant", answer)])


def _pair_turns(data: Mapping[str, Any]) -> list[Message]:
    pair = _pair(data)
    if pair is None:
        raise _wrong_keys(data, "prompt_completion")
    asked = [*read_history(data), *_side(data[pair[0]], "user", f"The {pair[0]}", 1)]
    answered = _side(data[pair[1]], "assistant", f"The {pair[1]}", len(asked) + 1)
    return with_system(data, [*asked, *answered])


def _side(value: Any, role: str, where: str, first: int) -> list[Message]:
    """Messages of a prompt or a completion: a text, a message, or a list of messages."""
    turns = [value] if isinstance(value, dict) else value
    if isinstance(value, str):
        # Tables keep messages as JSON text, but an answer may itself be JSON and must stay text.
        turns = found if is_spelled_out(found := parsed(value)) else None
    if isinstance(turns, list) and turns and turn_keys(turns[0]) is not None:
        return read_messages(turns, first=first)
    return [Message(role, read_content(value, where))]


def _read_text(data: Mapping[str, Any]) -> Example:
    text = data.get("text")
    if not isinstance(text, str):
        raise _wrong_keys(data, "text")
    return make_text(text)


def _read_segments(data: Mapping[str, Any]) -> Example:
    if not _fits_segments(data):
        raise _wrong_keys(data, "segments")
    segments = []
    for number, item in enumerate(parsed(data["segments"]), 1):
        text, label = (item.get("text"), item.get("label")) if isinstance(item, dict) else (None, None)
        if not isinstance(text, str):
            raise RowError("bad_content", f"Segment {number} has no text.")
        if not isinstance(label, bool):
            raise RowError("bad_label", f"Segment {number} has no label that is true or false.")
        segments.append(Segment(text, label))
    return make_segments(segments, is_framed=data.get("add_special_tokens") is True)


def _read_tokens(data: Mapping[str, Any]) -> Example:
    ids, labels, mask = (parsed(data.get(key)) for key in ("input_ids", "labels", "attention_mask"))
    if not isinstance(ids, list):
        raise _wrong_keys(data, "tokens")
    if labels is not None and not isinstance(labels, list):
        raise RowError("bad_label", "The labels are no list.")
    if isinstance(mask, list):
        if len(mask) != len(ids):
            raise RowError("bad_tokens", f"The row has {len(ids)} tokens and an attention mask of {len(mask)}.")
        # Tokens outside the attention mask are padding, which batching adds again.
        kept = [place for place, seen in enumerate(mask) if seen]
        if labels is not None and len(labels) == len(ids):
            labels = [labels[place] for place in kept]
        ids = [ids[place] for place in kept]
    return make_tokens(ids, labels)


def _read_preference(data: Mapping[str, Any]) -> Example:
    if not _fits_preference(data):
        raise _wrong_keys(data, "preference")
    chosen = _side(_first(data, _CHOSEN_KEYS), "assistant", "The chosen answer", 1)
    rejected = _side(_first(data, _REJECTED_KEYS), "assistant", "The rejected answer", 1)
    if find_turns(data) is not None:
        asked = _turns_of(data, "sharegpt")
    elif "instruction" in data:
        asked = with_system(data, _alpaca_question(data))
    elif (key := next((key for key in _ASKED_KEYS if key in data), None)) is not None:
        asked = with_system(data, [*read_history(data), *_side(data[key], "user", f"The {key}", 1)])
    else:
        asked = []
    if chosen[0].role in ("user", "system"):
        # Whole conversations: their common prefix is the prompt.
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        asked, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not asked:
        raise RowError("no_messages", "The row has two answers and nothing that was asked.")
    return make_preference(asked, chosen, rejected, read_tools(data))


def _read_kto(data: Mapping[str, Any]) -> Example:
    label = next((data[key] for key in _LABEL_KEYS if isinstance(data.get(key), bool)), None)
    if label is None:
        raise RowError("bad_label", "The row has no label that is true or false.")
    if find_turns(data) is not None:
        turns = _turns_of(data, "sharegpt")
    elif _fits_alpaca(data):
        turns = _alpaca_turns(data)
    elif _pair(data) is not None:
        turns = _pair_turns(data)
    else:
        raise _wrong_keys(data, "kto")
    return make_labeled(turns, label, read_tools(data))


#: Parsers of a row to an example, by format.
READERS: dict[Format, Callable[[Mapping[str, Any]], Example]] = {
    "messages": lambda data: make_conversation(_turns_of(data, "messages"), read_tools(data)),
    "sharegpt": lambda data: make_conversation(_turns_of(data, "sharegpt"), read_tools(data)),
    "alpaca": lambda data: make_conversation(_alpaca_turns(data)),
    "prompt_completion": lambda data: make_conversation(_pair_turns(data), read_tools(data)),
    "segments": _read_segments,
    "text": _read_text,
    "tokens": _read_tokens,
    "preference": _read_preference,
    "kto": _read_kto,
}
