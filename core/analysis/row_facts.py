"""Row facts for an analysis: lengths, problems and fingerprints, computed in portions by several processes."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from core.analysis.division import digest, normalized, signature
from core.config.choices import COMPARED, LEARNED, Objective, Overlong, objective_for
from core.data.conversation import Example, Message, RowError
from core.data.exclusion import Exclusion, row_line
from core.data.files.rows import Row
from core.data.formats.detect import Detection, UnreadColumns, count_names
from core.data.formats.media import find_placeholders
from core.sandbox.limits import cpu_limit
from core.secrets import find_email, find_secret
from core.template.mask import Masker
from core.template.tokenizer import MaskedRow
from core.text import one_line

#: Most rows and characters rendered and tokenized in one call.
BATCH_ROWS, BATCH_CHARACTERS = 128, 4 << 20
#: CPU seconds for one call; a tenth of a second is usual.
BATCH_SECONDS = 30
#: Most characters of a text searched for damage and secrets.
SEARCHED = 1 << 20

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# UTF-8 decoded as Latin-1 or Windows-1252: the letter of a lead byte, then the characters of its continuation bytes.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00c3[\u0192\u201a\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d]"
    "|\u00e2\u20ac[\u0080-\u00bf\u2018-\u203a\u0153\u0161\u017e\u02dc\u2122\u0152]|\u00ef\u00bb\u00bf|\u00f0\u0178[\u0080-\u203a]"
)
_UNFILLED = re.compile(r"\{\{ ?[A-Za-z_][A-Za-z0-9_]{0,39} ?\}\}")
#: Most placeholders of a row that are named.
_SHOWN = 5
_LABEL = re.compile(r"[A-Za-z0-9_+.-]{1,20}")
_TABLES = tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_ANSWER_COLUMNS = frozenset(_TABLES["answer_columns"])
#: Shortest answer, in characters, that is reported if it is also in the prompt.
_REPEATED = 24


@dataclass
class RowFacts:
    """Facts of a portion of rows, small enough to send to another process.

    ``keys`` and ``signatures`` are packed in the order of ``compared``, ``lengths`` in that of ``measured``.
    """

    read: int = 0
    dropped: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, reason and message of each dropped row."""
    found: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, code and message of each other problem."""
    compared: array[int] = field(default_factory=lambda: array("I"))
    """Numbers of rows with a digest and a signature, used or not."""
    keys: bytearray = field(default_factory=bytearray)
    signatures: bytearray = field(default_factory=bytearray)
    measured: array[int] = field(default_factory=lambda: array("I"))
    """Numbers of rows with a length, including those beyond the limit."""
    lengths: array[int] = field(default_factory=lambda: array("I"))
    tokens: int = 0
    supervised: int = 0
    stop_learned: int = 0
    used: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    """Filled columns that nothing reads, with the number of rows of each."""
    rows_unread: int = 0
    """Rows with such a column."""
    excluded: list[int] = field(default_factory=list)
    """Numbers of the rows that ``data.exclude`` names, usable or not."""
    named: dict[int, set[str]] = field(default_factory=dict)
    """Files in which its entries have named rows so far; see :attr:`core.data.exclusion.Exclusion.files`."""


class Examiner:
    """Computes the facts of rows.

    Args:
        detection: Format of the rows.
        masker: Renders and tokenizes; None for no tokens.
        max_length: Most tokens of a row; 0 for no limit.
        overlong: Treatment of longer rows.
        objective: As ``train.objective``; None for the one that learns from the rows.
        exclusion: Finds the rows of ``data.exclude``.
        path: Path of the rows.
    """

    def __init__(
        self,
        detection: Detection,
        masker: Masker | None,
        max_length: int,
        overlong: Overlong,
        objective: Objective | None = "sft",
        exclusion: Exclusion | None = None,
        path: Path = Path(),
    ) -> None:
        self._detection = detection
        self._masker = masker
        self._max_length = max_length
        self._overlong = overlong
        held = detection.format
        wanted = LEARNED.get(objective or objective_for(held))
        learned = held not in COMPARED if wanted is None else held == wanted
        self._shown_only = "" if learned else COMPARED.get(held, f"of the format {held}")
        self._unread = UnreadColumns(detection)
        self._exclusion, self._path = exclusion or Exclusion(()), path

    def examine(self, rows: Iterable[Row], first: int = 0) -> RowFacts:
        """Facts of rows; ``first`` is added to their numbers."""
        facts = RowFacts()
        for batch in self._batches(rows, first, facts):
            if self._masker is None:
                for number, _ in batch:
                    self._use(number, facts)
                continue
            with cpu_limit(BATCH_SECONDS):
                masked = self._masker.mask([example for _, example in batch])
            for (number, example), row in zip(batch, masked, strict=True):
                self._measure(number, example, row, facts)
        facts.named = dict(self._exclusion.files)
        return facts

    def keys(self, rows: Iterable[Row], first: int = 0) -> RowFacts:
        """Digests and signatures of rows, and nothing else."""
        facts = RowFacts()
        for _ in self._batches(rows, first, facts, quick=True):
            pass
        return facts

    def _batches(
        self, rows: Iterable[Row], first: int, facts: RowFacts, *, quick: bool = False
    ) -> Iterator[list[tuple[int, Example]]]:
        batch: list[tuple[int, Example]] = []
        characters = 0
        for row in rows:
            facts.read += 1
            number = first + row.index
            if not quick and self._exclusion.names(*row_line(self._path, row)):
                facts.excluded.append(number)
            try:
                example = self._detection.example(row)
            except RowError as error:
                facts.dropped.append((number, error.code, one_line(error.message, 300)))
                continue
            # As the run compares and divides them: without end marks.
            bare = self._masker.unmarked(example) if self._masker is not None else example
            text = normalized(bare)
            facts.compared.append(number)
            facts.keys += digest(bare, text)
            facts.signatures += signature(bare, text)
            if not quick:
                self._look(number, row.data or {}, example, facts)
            batch.append((number, example))
            characters += len(text)
            if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch

    def _look(self, number: int, data: Mapping[str, Any], example: Example, facts: RowFacts) -> None:
        turns = (*example.messages, *example.chosen)
        if turns:
            facts.turns[len(turns)] += 1
        texts = [turn.content for turn in turns] + [turn.reasoning for turn in turns if turn.reasoning]
        text = "\n".join(texts) if turns else example.text
        if example.ids is None:
            facts.scripts[main_script(text)] += 1
        found = [*_text_problems(text[:SEARCHED]), *_turn_problems(turns, example)]
        unread = self._unread.of(data)
        if unread:
            facts.rows_unread += 1
            count_names(facts.unread, dict.fromkeys(unread, 1))
        if column := next((name for name in unread if name.lower() in _ANSWER_COLUMNS), ""):
            found.append(("test_answers", f"The column {one_line(column, 40)} is not read."))
        elif data.get("split") in ("test", "validation"):
            found.append(("test_answers", f"The row says that it is of the {data['split']} split."))
        facts.found += [(number, code, detail) for code, detail in found]

    def _measure(self, number: int, example: Example, row: MaskedRow | RowError, facts: RowFacts) -> None:
        if isinstance(row, RowError):
            facts.dropped.append((number, row.code, one_line(row.message, 300)))
            return
        parts = [part for sequence in row.sequences for part in sequence.rows]
        length = row.longest
        facts.measured.append(number)
        facts.lengths.append(length)
        facts.tokens += sum(len(part) for part in parts)
        facts.supervised += sum(part.supervised_count for part in parts)
        if self._shown_only:
            self._use(number, facts)
            return
        limit = self._max_length or length
        if length > limit and (reason := self._too_long(row.sequences, length)) is not None:
            facts.dropped.append((number, reason.code, reason.message))
            return
        self._use(number, facts)
        if self._masker is not None and (bare := self._masker.unmarked(example)) is not example:
            mark = example.answer.removeprefix(bare.answer).strip() or "an end mark"
            facts.found.append((number, "end_mark", f"An answer ends in {one_line(mark, 40)}."))
        if row.left_out:
            facts.found.append((number, "prompt_drops", row.left_out))
        if length > limit:
            facts.found.append((number, "truncated", f"The row has {length} tokens and is cut at {limit}."))
        if self._learns_stop(row, limit):
            facts.stop_learned += 1
        elif example.ids is not None or example.segments:
            facts.found.append((number, "no_stop_learned", "The last token learned does not end an answer."))

    def _use(self, number: int, facts: RowFacts) -> None:
        """Record a row without defects."""
        if self._shown_only:
            message = f"The rows are {self._shown_only}, and train.objective learns from others."
            facts.dropped.append((number, "not_trained_on", message))
        else:
            facts.used += 1

    def _too_long(self, sequences: Sequence[MaskedRow], length: int) -> RowError | None:
        """Reason to drop a row beyond the limit; None if it is truncated and used."""
        limit = self._max_length
        if self._overlong != "truncate":
            refused = " A run is refused for it, as data.overlong says." if self._overlong == "refuse" else ""
            return RowError("overlong", f"The row has {length} tokens, more than train.max_length = {limit}.{refused}")
        if all(any(part.supervised.count(1, 1, limit) for part in sequence.rows) for sequence in sequences):
            return None
        return RowError("nothing_supervised", f"Cut at {limit} tokens, nothing of the row is learned.")

    def _learns_stop(self, row: MaskedRow, limit: int) -> bool:
        stops = self._masker.stop_ids if self._masker is not None else ()
        for part in row.rows:
            last = part.supervised.rfind(1, 1, limit)
            if last >= 0 and part.input_ids[last] in stops:
                return True
        return False


def _text_problems(text: str) -> Iterator[tuple[str, str]]:
    if (found := _CONTROL.search(text)) is not None:
        yield "control_characters", f"It holds U+{ord(found.group()):04X}."
    if not text.isascii():
        if "\ufffd" in text:
            yield "encoding_damage", "It holds U+FFFD, which stands for a character that was lost."
        elif (found := _MOJIBAKE.search(text)) is not None:
            yield "encoding_damage", f"It holds {one_line(found.group())}, UTF-8 read in another encoding."
    if names := dict.fromkeys(_UNFILLED.findall(text)):
        yield "unfilled", f"It holds {', '.join(list(names)[:_SHOWN])}."
    if kinds := find_placeholders(text):
        yield "placeholder", f"It holds <{kinds[0]}>, and no column has what that may stand for."
    if (secret := find_secret(text)) is not None:
        yield "secret", f"It holds what looks like {secret}."
    if find_email(text):
        yield "email", "It holds an e-mail address."


def _turn_problems(turns: Sequence[Message], example: Example) -> Iterator[tuple[str, str]]:
    for number, turn in enumerate(turns, 1):
        if turn.role in ("user", "system") and not turn.content.strip():
            yield "empty_content", f"Message {number}, the {turn.role}'s, is empty."
            break
    if turns and turns[-1].role == "assistant":
        answer = turns[-1].content.strip()
        if _LABEL.fullmatch(answer) and not turns[-1].tool_calls and example.label is None:
            yield "label_only", f"The answer is {answer}."
        elif len(answer) >= _REPEATED:
            asked = next((turn for turn in reversed(turns[:-1]) if turn.role in ("user", "system")), None)
            if asked is not None and answer in asked.content:
                yield "answer_in_prompt", f"The answer is also in the question: {one_line(answer, 60)}"


#: Letters inspected.
SAMPLE = 400

#: First code point of each range, and the script of its letters.
_STRETCHES: list[tuple[int, str]] = _TABLES["scripts"]
_STARTS = [start for start, _ in _STRETCHES]
_ASCII_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


def main_script(text: str) -> str:
    """Main writing system of a text, guessed from its first letters; ``none`` for a text without letters."""
    if text.isascii():
        head = text[:SAMPLE]
        return "Latin" if head.upper() != head.lower() or text.upper() != text.lower() else "none"
    counts: dict[str, int] = {}
    head = text[: 4 * SAMPLE]
    # ASCII letters, the most common, are counted as bytes, which is faster.
    if latin := len(head.encode("ascii", "ignore").translate(None, _ASCII_NO_LETTERS)):
        counts["Latin"] = latin
    for character, count in Counter("".join(_BEYOND_ASCII.findall(head))).items():
        if character.isalpha():
            script = _STRETCHES[bisect_right(_STARTS, ord(character)) - 1][1]
            counts[script] = counts.get(script, 0) + count
    # Japanese mixes kana with Han characters.
    if counts.get("Japanese", 0) * 8 > counts.get("Han", 0):
        counts["Japanese"] = counts.get("Japanese", 0) + counts.pop("Han", 0)
    return max(counts, key=lambda script: counts[script]) if counts else "none"
