"""Dataset formats: a predicate and a parser for each, and their detection in the rows of a file."""

from __future__ import annotations

import difflib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config.choices import COMPARED, FORMATS, LEARNED, ROLES, ColumnRole, Format, Objective, objective_for
from core.data.conversation import (
    CONVERSATION_KEYS,
    ROLE_NAMES,
    Example,
    Message,
    RowError,
    Segment,
    find_turns,
    is_pair_turn,
    is_spelled_out,
    make_conversation,
    make_labeled,
    make_preference,
    make_segments,
    make_text,
    make_tokens,
    parsed,
    read_content,
    read_history,
    read_messages,
    read_tools,
    read_transcript,
    turn_keys,
    turns_column,
    with_system,
)
from core.data.files.rows import Row
from core.data.formats.guess import (
    answer_beside,
    find_pair,
    find_transcripts,
    first_filled,
    folded,
    guess_columns,
    is_context,
    mapping_line,
)
from core.data.formats.mapping import ColumnMap, UnknownColumnsError, headless, missing_columns
from core.data.formats.media import media_columns, refuse_media, refuse_placeholders
from core.errors import UserError
from core.text import one_line

_PAIRS = (
    *(("prompt", answer) for answer in ("completion", "response", "answer", "output")),
    *(("question", answer) for answer in ("answer", "response", "output")),
    *(("query", answer) for answer in ("response", "answer", "output")),
    *(("input", answer) for answer in ("output", "target", "response")),
    *(("inputs", "targets"), ("problem", "solution"), ("user", "assistant"), ("human", "assistant")),
    *(("source", "target"), ("q", "a")),
)
_CONTEXT_KEYS = ("input", "context")
_OUTPUT_KEYS = ("output", "response")
_LABEL_KEYS = ("label", "kto_tag")
_CHOSEN_KEYS, _REJECTED_KEYS = ("chosen", "chosen_messages"), ("rejected", "rejected_messages")
#: Most columns compared with known names, and the longest name.
_COMPARED_COLUMNS, _NAME_LENGTH = 8, 40
_KNOWN_COLUMNS = (
    *("messages", "conversations", "instruction", "input", "context", "output", "response"),
    *("prompt", "completion", "question", "answer", "text", "system", "history"),
    *("chosen", "rejected", "chosen_messages", "rejected_messages", "label", "input_ids"),
)
_ASKED_KEYS = ("prompt", "question", "query", "instruction", "input")
#: Names of a question beside a text; not ``source`` and ``user``, which may be the origin of a text.
_QUESTION_KEYS = ("prompt", "question", "query", "instruction", "input", "inputs", "problem")
_TOOL_KEYS = ("tools", "functions")
#: Known column names by their folded spelling.
_SPELLINGS = {
    folded(name): name
    for name in (
        *(*_KNOWN_COLUMNS, *CONVERSATION_KEYS, *itertools.chain.from_iterable(_PAIRS)),
        *(*_TOOL_KEYS, *_LABEL_KEYS, "system_prompt", "attention_mask", "labels"),
    )
}
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


def question_beside_text(data: Mapping[str, Any], text: str = "text") -> str:
    """Column with a question in a row with a text, which may be its answer; empty without one."""
    if not isinstance(data.get(text), str):
        return ""
    # Named as such first, then in another spelling.
    spelled = {folded(str(name)): name for name in reversed([*data])} | {name: name for name in data}
    for key in _QUESTION_KEYS:
        asked = data.get(name := spelled.get(key, key))
        if isinstance(asked, (str, list, dict)) and (asked.strip() if isinstance(asked, str) else asked):
            return name
    return ""


def _doubtful_text(rows: Sequence[Mapping[str, Any]], source: str, column: str = "text") -> UnknownColumnsError | None:
    """The error for rows with a text that may be a question, an answer or turns; None where it is plain text."""
    rows = [data for data in rows if isinstance(data.get(column), str)]
    alone = f"to learn the text alone, {mapping_line({'text': column})}."
    meant: dict[ColumnRole, str]
    if asked := next(filter(None, (question_beside_text(data, column) for data in rows)), ""):
        meant, doubt = {"user": asked, "assistant": column}, "the text is the answer"
        beside = f"{asked} beside {column}"
    elif find_transcripts([{column: data.get(column)} for data in rows]):
        meant, doubt, beside = {"messages": column}, "they are read as turns", f"written conversations in {column}"
    elif answer := answer_beside(rows, column):
        meant, doubt = {"user": column, "assistant": answer}, f"{answer} is the answer"
        beside = f"{answer} beside {column}"
    elif rows and all(ROLE_NAMES.get(str(data.get("role")).lower()) for data in rows):
        meant, doubt, beside = {}, "the rows are messages of one conversation", f"role beside {column}"
    else:
        return None
    join = "give each conversation a row with messages" if not meant else f"set {mapping_line(meant)}"
    return UnknownColumnsError(
        f"{source} has {one_line(beside, 120)}, and nothing says whether {one_line(doubt, 80)}.",
        f"If so, {join}; {alone}",
        meant,
    )


def _is_whole(answer: Any) -> bool:
    """True if an answer of a preference pair is a whole conversation, including the question."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    keys = turn_keys(first)
    return keys is not None and ROLE_NAMES.get(str(first[keys[0]]).strip().lower()) in ("user", "system")


def _first(data: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((data[key] for key in keys if key in data), None)


def _pair(data: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in data and pair[1] in data), None)


def _fits_messages(data: Mapping[str, Any]) -> bool:
    turns = find_turns(data)
    return turn_keys(turns[0]) == ("role", "content") if turns else False


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
    guess = misspelled_column(data)
    meant = f" Did you mean {guess[1]} by {one_line(guess[0], 40)}?" if guess is not None else ""
    return RowError("wrong_keys", f"The row needs {FORMATS[wanted]}; its columns are {shown}.{meant}")


def misspelled_column(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """A column one letter off a known name with which the row would fit a format, and that name; None without one."""
    for name in [*data][:_COMPARED_COLUMNS]:
        known = _nearest_column(name) if len(name) <= _NAME_LENGTH else None
        if known is None or known in data or (known == "text" and len(data) > 1):
            continue
        if _parts_as(data, {known: name})[1] and _is_readable({**data, known: data[name]}):
            return name, known
    return None


def _is_readable(data: Mapping[str, Any]) -> bool:
    """False if the format of a row cannot read its contents, such as objects in place of a text."""
    try:
        if (found := format_of(data)) is not None:
            to_example(data, found)
    except RowError as error:
        return error.code != "bad_content"
    return True


def _parts_as(data: Mapping[str, Any], named: Mapping[str, str]) -> tuple[Format | None, dict[ColumnRole, str]]:
    """The format of a row in which columns bear known names, and its own columns by role.

    Args:
        data: The row.
        named: Known name to the row's own.
    """
    row = {**data, **{known: data[name] for known, name in named.items()}}
    found = format_of(row) if named else None
    parts = {} if found is None else find_parts(row, found)
    return found, {role: named.get(parts[role], parts[role]) for role in ROLES if role in parts}


@functools.lru_cache(maxsize=1024)
def _nearest_column(name: str) -> str | None:
    if name in _KNOWN_COLUMNS:
        return None
    return next((known for known in _KNOWN_COLUMNS if _differ_by_one(name.strip().lower(), known)), None)


def _differ_by_one(one: str, other: str) -> bool:
    """True if one letter is missing, added or replaced, or two neighbors are exchanged."""
    if abs(len(one) - len(other)) > 1 or one == other:
        return False
    edits = [
        edit for edit in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes() if edit[0] != "equal"
    ]
    sizes = [max(to - start, end - begin) for _, start, to, begin, end in edits]
    return sizes == [1] or (len(one) == len(other) and sorted(one) == sorted(other) and sizes == [1, 1])


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
        # A transcript beside a question is that answer's text.
        better, worse = (read_transcript(turns[0].content) if turns else None for turns in (chosen, rejected))
        if better is not None and worse is not None:
            chosen, rejected = better, worse
    if whole := chosen[0].role in ("user", "system"):
        # Whole conversations: their common prefix is the prompt.
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        asked, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not asked:
        if whole:
            raise RowError("no_messages", "The two conversations of the row do not begin with the same question.")
        raise RowError("wrong_keys", "The row has two answers and no question: no column prompt, no turns in them.")
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


#: Rows inspected to recognize a format.
SAMPLE = 200

#: Formats that ``data.format`` may name beside a column mapping, since they are read alike.
_ALIKE: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "sharegpt"),
    "prompt_completion": ("prompt_completion", "alpaca"),
}


@dataclass(frozen=True)
class Detection:
    """A recognized format.

    Args:
        format: Format of the rows.
        reason: Reason for the format, in one sentence.
        columns: The column mapping, if the configuration has one, or the columns have other names than the format's.
        parts: Columns by role in the first row of the format.
    """

    format: Format
    reason: str
    columns: ColumnMap | None = None
    parts: Mapping[ColumnRole, str] = field(default_factory=dict)

    def example(self, row: Row) -> Example:
        """Convert a row to an example; see :func:`row_example`."""
        return row_example(row, self.format, self.columns)

    def read_columns(self, data: Mapping[str, Any]) -> frozenset[str]:
        """Columns of a row that are read."""
        return read_columns(data, self.format) if self.columns is None else self.columns.read_columns

    def describe_unread(self, names: Collection[str], rows: Iterable[Row]) -> str:
        """Columns that are not read, and the mapping that reads a context of the question among them.

        Args:
            names: The columns.
            rows: The first rows.
        """
        filled = first_filled(row.data for row in rows if row.data is not None)
        texts = (name for name in sorted(names) if is_context(name) and isinstance(filled.get(name), str))
        context = next(texts, None)
        shown = describe_columns(names)
        if context is None or "user" not in self.parts or "context" in self.parts:
            return shown
        line = mapping_line({**self.parts, "context": context})
        return f"{shown}. To put {one_line(context, 40)} under the question: {line}"


def detect(rows: Iterable[Row], source: str = "The file", *, asks: bool = True) -> Detection:
    """Detect the format that most of the first readable rows fit.

    Args:
        rows: Rows, of which the first 200 are inspected.
        source: Name of the rows' source, for messages.
        asks: Refuse texts beside a column that may be their question, answer or label. A recorded run has learned them
            as they are.

    Raises:
        UserError: If no row can be read, or none fits a format; the message names the columns, the hint the nearest
            known column. Also for such texts.
    """
    readable = _readable(rows, source)
    votes = Counter(found for data in readable if (found := format_of(data)) is not None)
    if not votes:
        if (named := _by_other_names(readable, source)) is not None:
            return named
        raise headless(readable, source) or _unknown_columns(readable, source)
    winner, count = votes.most_common(1)[0]
    if asks and winner == "text" and (doubt := _doubtful_text(readable, source)) is not None:
        raise doubt
    return Detection(winner, f"{_share(count, len(readable))} {FORMATS[winner]}.", parts=_parts(readable, winner))


def _parts(rows: Iterable[Mapping[str, Any]], format: Format) -> dict[ColumnRole, str]:  # noqa: A002
    found = next((find_parts(data, format) for data in rows if FITS[format](data)), {})
    return {role: found[role] for role in ROLES if role in found}


def _by_other_names(rows: Sequence[Mapping[str, Any]], source: str, wanted: str = "auto") -> Detection | None:
    """The format of rows whose columns have other names: in another spelling, of a pair of answers, of transcripts."""
    filled = first_filled(rows)
    named = {known: name for name in filled if (known := _SPELLINGS.get(folded(name), name)) not in filled}
    spelled, parts = _parts_as(filled, named)
    if spelled == "text" != wanted and (doubt := _doubtful_text(rows, source, parts["text"])) is not None:
        raise doubt
    for columns in (parts, find_pair(rows), find_transcripts(rows)):
        found = ColumnMap(columns) if columns else None
        if found is not None and 2 * sum(not found.missing(data) for data in rows) > len(rows):
            return Detection(found.format, f"By the names of the columns, {found.describe()}.", found, columns)
    return None


def choose(
    rows: Iterable[Row],
    wanted: str = "auto",
    source: str = "The file",
    columns: ColumnMap | None = None,
    *,
    asks: bool = True,
) -> Detection:
    """The configured format, or the detected format for ``auto``.

    Args:
        rows: Rows, of which the first 200 are inspected.
        wanted: A format, or ``auto``.
        source: Name of the rows' source, for messages.
        columns: The column mapping of the configuration; it decides the format.
        asks: As for :func:`detect`.

    Raises:
        UserError: As :func:`detect`, or if no row is of the wanted format or has the mapped columns.
    """
    if columns is not None:
        if wanted not in ("auto", *_ALIKE.get(columns.format, (columns.format,))):
            shown = one_line(wanted, 60)
            raise UserError(
                f"data.columns describes rows of the format {columns.format}, and data.format says {shown}.",
                "Remove one of the two.",
            )
        if (missing := missing_columns(columns, _readable(rows, source), source)) is not None:
            raise missing
        return Detection(columns.format, f"The columns are named: {columns.describe()}.", columns, columns.columns)
    if wanted == "auto":
        return detect(rows, source, asks=asks)
    readable = _readable(rows, source)
    chosen = next((name for name in FORMATS if name == wanted), None)
    if chosen is None:
        raise UserError(f"There is no format {one_line(wanted, 60)}.", f"The formats are {', '.join(FORMATS)}.")
    if not any(FITS[chosen](data) for data in readable):
        found = _by_other_names(readable, source, wanted)
        if found is not None and chosen in _ALIKE.get(found.format, (found.format,)):
            return found
        if (question := headless(readable, source)) is not None:
            raise question
        error = _unknown_columns(readable, source)
        words = f"{error.message[:-1]}, and {chosen} needs {FORMATS[chosen]}."
        raise UnknownColumnsError(words, error.hint, error.columns)
    return Detection(chosen, f"The configuration says {chosen}: {FORMATS[chosen]}.", parts=_parts(readable, chosen))


def refuse_untrainable(detection: Detection, source: str, objective: Objective) -> None:
    """Refuse rows that the training objective cannot use.

    Args:
        detection: Format of the rows.
        source: Name of the rows' source, for messages.
        objective: As ``train.objective``.

    Raises:
        UserError: For preference pairs and labeled answers if the objective needs other rows, and vice versa.
    """
    noun = COMPARED.get(detection.format)
    wanted = LEARNED.get(objective)
    fitting = objective_for(detection.format)
    if wanted is None and noun is not None:
        either = "dpo or orpo" if fitting == "dpo" else fitting
        alike = "the good answers alone" if fitting == "dpo" else "all answers alike"
        learned = _answers_alone(detection.parts)
        also = f" To train on {alike}, name them: {mapping_line(learned)}." if learned else ""
        raise UserError(
            f"{source} holds {noun}, and train.objective is sft, which learns answers as they are.",
            f"Set train.objective = {either}.{also}",
        )
    if wanted is not None and detection.format != wanted:
        held = noun or f"rows of the format {detection.format}"
        raise UserError(
            f"{source} holds {held}, and train.objective is {objective}, which learns from {COMPARED[wanted]}.",
            f"Give it {FORMATS[wanted]}, or set train.objective = {fitting}.",
        )


def _answers_alone(parts: Mapping[ColumnRole, str]) -> dict[ColumnRole, str]:
    """The columns of compared rows for supervised fine-tuning; empty if no mapping says it."""
    answer = parts.get("chosen", parts.get("assistant"))
    if "user" in parts and answer is not None:
        return {"user": parts["user"], "assistant": answer}
    # The better answers are whole conversations, or the conversations are labeled.
    talk = parts.get("messages") if "label" in parts else parts.get("chosen") if "messages" not in parts else None
    return {"messages": talk} if talk is not None else {}


def row_example(row: Row, format: Format, columns: ColumnMap | None = None) -> Example:  # noqa: A002
    """Convert a row of a file to an example.

    Raises:
        RowError: The error of an unreadable row, ``has_media`` if it has more than text, or as :func:`to_example`.
    """
    if row.data is None:
        raise RowError(row.code, row.error)
    holders = media_columns(row.data, columns)
    refuse_media(row.data, holders, columns)
    example = to_example(row.data if columns is None else columns.apply(row.data), format)
    refuse_placeholders(example, holders)
    return example


def to_example(data: Mapping[str, Any], format: Format) -> Example:  # noqa: A002
    """Convert the columns of a row to a checked example.

    Raises:
        RowError: With a code listed in :class:`~core.data.conversation.RowError`.
    """
    return READERS[format](data)


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
        f"{source} has no row that can be read: {first_error.place}: {one_line(first_error.error, 300)}",
        "Each row must be one JSON object, or one record of a CSV with a header.",
    )


def _share(count: int, total: int) -> str:
    if total == 1:
        return "The first row has"
    return f"Each of the first {total} rows has" if count == total else f"{count} of the first {total} rows have"


def _unknown_columns(rows: Sequence[Mapping[str, Any]], source: str) -> UnknownColumnsError:
    columns = list(rows[0])
    shown = ", ".join(one_line(name, 40) for name in columns[:12]) + (", …" if len(columns) > 12 else "")
    message = f"{source} has rows of no known format: their columns are {shown or 'none'}."
    if (near := misspelled_column(rows[0])) is not None:
        name, known = near
        _, parts = _parts_as(rows[0], {known: name})
        hint = f"Did you mean {known}? Rename the column {one_line(name)}, or set {mapping_line(parts)}."
        return UnknownColumnsError(message, hint, parts)
    guess, lacks = guess_columns(rows)
    if guess:
        hint = f"If {guess['user']} is asked and {guess['assistant']} is the answer, set {mapping_line(guess)}."
        return UnknownColumnsError(message, hint, guess)
    every = "; ".join(f"{name} ({description})" for name, description in FORMATS.items())
    return UnknownColumnsError(message, f"It has {lacks} The formats read as they are: {every}.")


#: Share of rows in another format above which a file is reported as mixed.
MIXED_SHARE = 0.05
# Formats that rows of one file may mix without ambiguity.
_COMPATIBLE: tuple[frozenset[Format], ...] = (
    frozenset({"messages", "sharegpt"}),
    frozenset({"alpaca", "prompt_completion"}),
)


def find_ambiguity(rows: Iterable[Row], detection: Detection, wanted: str = "auto") -> str:
    """Reason why the format of rows is ambiguous, in one sentence; empty if it is clear, or the user has chosen.

    Args:
        rows: The first rows.
        detection: The detected format.
        wanted: ``data.format``.
    """
    if wanted != "auto" or detection.columns is not None:
        return ""
    readable = [row.data for row in rows if row.data is not None]
    votes = Counter(found for data in readable if (found := format_of(data)) is not None)
    others = [(name, count) for name, count in votes.most_common() if not _same(name, detection.format)]
    if others and others[0][1] > MIXED_SHARE * len(readable):
        name, count = others[0]
        return (
            f"{votes[detection.format]} of the first {len(readable)} rows are {detection.format}, {count} are {name}."
        )
    # A second conversation in a row, in columns of its own.
    structured: tuple[Format, ...] = ("alpaca", "prompt_completion")
    for data in readable if detection.format in ("messages", "sharegpt") else ():
        for second in structured:
            if FITS[detection.format](data) and FITS[second](data):
                return f"The rows have the columns of {detection.format} and those of {second}."
    return ""


def _same(one: Format, other: Format) -> bool:
    return one == other or any({one, other} <= group for group in _COMPATIBLE)


#: Most names counted, and most names shown.
MOST_NAMES, SHOWN_NAMES = 1000, 12
_COUNTED_LENGTH = 80
#: Most cached sets of columns; most files have one.
_KEPT_SETS = 64


class UnreadColumns:
    """Finds the filled columns of rows that nothing reads.

    Args:
        detection: Format of the rows.
    """

    def __init__(self, detection: Detection) -> None:
        self._detection = detection
        self._by_columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, data: Mapping[str, Any]) -> list[str]:
        """Names of the filled, unread columns of a usable row."""
        columns = tuple(data)
        unread = self._by_columns.get(columns)
        if unread is None:
            read = self._detection.read_columns(data)
            unread = tuple(name for name in columns if name not in read)
            if len(self._by_columns) >= _KEPT_SETS:
                self._by_columns.clear()
            self._by_columns[columns] = unread
        return [name[:_COUNTED_LENGTH] for name in unread if _holds(data[name])]


def count_names(counts: Counter[str], found: Mapping[str, int]) -> None:
    """Add counts of columns, for at most :data:`MOST_NAMES` names, since every row may have other columns."""
    for name, count in found.items():
        if name in counts or len(counts) < MOST_NAMES:
            counts[name] += count


def describe_columns(names: Collection[str]) -> str:
    """Sorted names, safe to show: ``category, id``, or the first names and the number of the rest."""
    ordered = sorted(names)
    shown = ", ".join(one_line(name, 40) for name in ordered[:SHOWN_NAMES])
    more = len(ordered) - SHOWN_NAMES
    if more <= 0:
        return shown
    return f"{shown} and {'at least ' if len(ordered) >= MOST_NAMES else ''}{more} more"


def _holds(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    return value is not None and value != [] and value != {}
