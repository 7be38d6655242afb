"""Prompt sets: questions from a file, with optional expected answers and JSON Schemas."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.prompts import conversation_of, read_row
from core.chat.request import ChatRequest
from core.data.conversation import RowError
from core.data.files.rows import Row
from core.data.formats.detect import Detection
from core.data.registries.resolve import flat_sources, hash_data_files, single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from core.jobs.job import JobProgress
from core.path_kind import JSON_LINES_SUFFIXES
from core.paths import user_path
from core.small_files import open_regular
from core.text import one_line

if TYPE_CHECKING:
    from core.runs.catalog.trained import TrainedModel

#: Most prompts of a set; more would be a benchmark for a night.
PROMPT_LIMIT = 10_000
#: Longest line of a file of prompts, and largest file, in bytes.
LINE_LIMIT, FILE_LIMIT = 4 << 20, 256 << 20
_TEXT = (".txt", ".md", ".prompts", "")
#: Keys of a line in our own format, which distinguish it from a row of a dataset.
_KEYS = frozenset({"id", "prompt", "messages", "expected", "schema"})


@dataclass(frozen=True)
class PromptItem:
    """A question of a prompt set."""

    id: str
    """Its id in the file, else its number, from 1."""
    messages: tuple[dict[str, str], ...]
    """``role`` and ``content`` each, the last one the user's."""
    expected: str | None = None
    schema: Any = None
    """A JSON Schema that the answer has to fit; None for none."""

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptItem:
        """Read the output of :func:`dataclasses.asdict`."""
        return cls(str(data["id"]), tuple(dict(item) for item in data["messages"]), data["expected"], data["schema"])


@dataclass(frozen=True)
class PromptSet:
    """Questions with their origin."""

    name: str
    """The file, or the entry of a dataset."""
    items: tuple[PromptItem, ...]
    skipped: int = 0
    """Rows of a dataset that are no question for a chat."""

    @property
    def sha256(self) -> str:
        """Hash of everything that a model or a score sees."""
        text = json.dumps(list(map(asdict, self.items)), ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_prompt_set(reference: str, *, limit: int | None = None, system: str = "") -> PromptSet:
    """A prompt set from a file.

    A file that ends in ``.jsonl`` has an object on each line: ``prompt``, a text, or ``messages``, whose final answer
    is the expected one; ``expected`` (a text, or any JSON), ``schema`` and ``id`` may be added. In a ``.txt`` or
    ``.md`` file each line is a prompt. Anything else, and lines of other keys, is a dataset as ``data.train`` takes it:
    the last answer of a row is the expected one.

    Args:
        reference: The file, or an entry as in ``data.train``.
        limit: Most questions, the first ones; None for all.
        system: The system message of prompts that are a text; empty for none.

    Raises:
        UserError: If it cannot be read, or has no prompt, or more than :data:`PROMPT_LIMIT`.
    """
    if not reference.strip():
        raise UserError("No file of prompts is named.", "Name one.")
    path = user_path(reference)
    most = PROMPT_LIMIT if limit is None else min(limit, PROMPT_LIMIT)
    suffix = path.suffix.lower()
    name = one_line(reference, 200)
    skipped = 0
    if os.path.isfile(path) and (suffix in _TEXT or (suffix in JSON_LINES_SUFFIXES and _is_ours(path, name))):
        found = list(itertools.islice(_own_items(path, name, suffix in JSON_LINES_SUFFIXES, system), most + 1))
    else:
        found, skipped = _dataset_items([single_source(reference)], most + 1)
    return _checked(name, found, skipped, limit)


def read_held_out(
    trained: TrainedModel, *, limit: int | None = None, progress: Callable[[JobProgress], None] = lambda _: None
) -> PromptSet:
    """The rows that a run held out of its training files for ``data.eval_share``, as a prompt set; blocks.

    Args:
        trained: The model of the run.
        limit: Most questions, the first ones; None for all.
        progress: Called while the rows are divided again; may raise to stop.

    Raises:
        UserError: If a file has changed since the run or cannot be read, the tokenizer of the run is not on this
            machine, or as :func:`read_prompt_set`.
    """
    from core.analysis.job import analyze
    from core.analysis.result import request_for
    from core.analysis.row_samples import tokenizer_directory
    from core.template.builtin import named_or_file

    config, data = trained.config, trained.config.data
    refuse_changed_files(trained, "the rows that it held out are not known", "Name a file of prompts.")
    model = str(tokenizer_directory(config.model.base))
    request = request_for(config, model=model, template=named_or_file(trained.template))
    looking = JobProgress("dividing the rows as the run did")
    progress(looking)
    numbers = analyze(request, lambda _: progress(looking)).held_out[: config.eval.max_rows]
    most = PROMPT_LIMIT if limit is None else min(limit, PROMPT_LIMIT)
    sources = flat_sources(data.train, data.format, data.columns)
    found, skipped = _dataset_items(sources, most + 1, frozenset(numbers))
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return _checked(f"{one_line(sources[0].name, 200)}{more}, held out", found, skipped, limit)


def refuse_changed_files(trained: TrainedModel, consequence: str, hint: str) -> None:
    """Refuse a run with a data file that has changed since; blocks, as the files are hashed.

    Args:
        trained: The model of the run.
        consequence: What follows from a change, as the end of the sentence.
        hint: The remedy.

    Raises:
        UserError: If a file has changed.
    """
    from core.audit.chain_check import read_sealed

    starts = read_sealed(trained.run).starts
    if starts and (before := starts[-1].body.get("files")):
        now = hash_data_files(trained.config.data)
        if changed := next((path for path in now if now[path] != before.get(path)), None):
            raise UserError(f"{one_line(changed, 200)} has changed since the run, so {consequence}.", hint)


def _checked(name: str, found: list[PromptItem], skipped: int, limit: int | None) -> PromptSet:
    """A prompt set of the questions found, at most one beyond the limit."""
    most = PROMPT_LIMIT if limit is None else min(limit, PROMPT_LIMIT)
    if not found:
        raise UserError(f"{name} has no prompt.", "Write one on each line, or take a dataset with conversations.")
    if len(found) > most and limit is None:
        raise UserError(f"{name} has more than {PROMPT_LIMIT:,} prompts.", "Take a part of them: --limit 1000.")
    return PromptSet(name, tuple(_with_own_ids(found[:most])), skipped)


def _with_own_ids(items: Sequence[PromptItem]) -> Iterator[PromptItem]:
    """The items, with a number behind repeated ids."""
    seen: dict[str, int] = {}
    for item in items:
        seen[item.id] = count = seen.get(item.id, 0) + 1
        yield item if count == 1 else PromptItem(f"{item.id} ({count})", item.messages, item.expected, item.schema)


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not empty."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > FILE_LIMIT:
                raise UserError(f"{name} has more than {FILE_LIMIT >> 20} MB.", "Split it.")
            number = 0
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise UserError(f"{name}, line {number} has more than {LINE_LIMIT >> 20} MB.", "Shorten it.")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.", "Check the path.") from error


def _is_ours(path: Path, name: str) -> bool:
    """True if the first line is a question in our own format, or no JSON at all, which is refused by its number."""
    first = next(_lines(path, name), None)
    if first is None:
        return True
    try:
        row: Any = json.loads(first[1])
    except (ValueError, RecursionError):
        return True
    return not isinstance(row, dict) or bool({"prompt", "messages"} & set(row) and set(row) <= _KEYS)


def _own_items(path: Path, name: str, as_json: bool, system: str) -> Iterator[PromptItem]:
    for count, (number, line) in enumerate(_lines(path, name), 1):
        try:
            yield _item(read_row(line) if as_json else {"prompt": line}, count, system)
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error.message}", error.hint) from error


def _item(row: Mapping[str, Any], count: int, system: str) -> PromptItem:
    if unknown := set(row) - _KEYS:
        raise UserError(
            f"It has the unknown key {one_line(min(map(str, unknown)), 40)}.",
            f"The keys are {', '.join(sorted(_KEYS))}.",
        )
    messages, expected = conversation_of(row, system), row.get("expected")
    given = row.get("messages")
    if expected is None and given and len(given) > len(messages):
        # The final answer, which is not asked.
        expected = given[-1].get("content")
    if expected is not None and not isinstance(expected, str):
        expected = json.dumps(expected, ensure_ascii=False)
    schema = row.get("schema")
    if schema is not None and not isinstance(schema, (dict, bool)):
        raise UserError("Its schema is no JSON object.", "Write a JSON Schema, or leave it out.")
    identity = row.get("id")
    name = one_line(str(identity), 80) if identity is not None else str(count)
    return PromptItem(name, tuple(messages), expected, schema)


def _dataset_items(
    sources: Sequence[DataSource], most: int, chosen: Collection[int] | None = None
) -> tuple[list[PromptItem], int]:
    """Questions of a dataset, and the number of skipped rows; of the ``chosen`` rows, by number, or of all."""
    items: list[PromptItem] = []
    skipped = 0
    for count, (detection, row) in enumerate(_rows(sources), 1):
        if len(items) >= most:
            break
        if chosen is not None and count - 1 not in chosen:
            continue
        try:
            example = detection.example(row)
            messages = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
            ChatRequest(messages)
        except (RowError, UserError):
            skipped += 1
            continue
        if messages[-1]["role"] != "user":
            skipped += 1
            continue
        expected = example.answer if example.label is not False else None
        items.append(PromptItem(str(count), tuple(messages), expected or None))
    return items, skipped


def _rows(sources: Sequence[DataSource]) -> Iterator[tuple[Detection, Row]]:
    """The rows of all sources in order, each with the format of its source."""
    for source in sources:
        with source.open() as file:
            detection = source.recognize(file)
        for row in source.rows():
            yield detection, row
