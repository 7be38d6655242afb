"""Corrections: answers that the user rewrote in the chat, kept with their conversation for the data that a run was
trained on, and the run that learns them.

They are in ``corrections/NAME-HASH.jsonl`` in the home, named after the training data: all runs on the same data share
them, and they outlive each run. A line is a row with ``messages``, the last one the corrected answer, and ``rejected``,
the answer of the model. A run trains on a copy of the file as it was, so that it can be continued while more are added.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.chat.prompts import BYTES_LIMIT, conversation_of, read_lines, read_row
from core.config.derived import holds_out
from core.config.document import ConfigDocument
from core.data.conversation import Example, Message, RowError, make_conversation, make_labeled, make_preference
from core.errors import UserError
from core.hub_uri import short_name
from core.lock_file import open_lock_file
from core.runs.catalog.earlier import train_further
from core.runs.record.store import Run, make_slug
from core.text import json_line

#: Times that a run trains on a correction, and on other rows for each of these times: enough for a correction to be
#: learned in one short run, and for three quarters of the rows to remind the model of the rest.
REPEATS, OTHERS = 8, 3
_DIRECTORY = "corrections"

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Correction:
    """A question with the answer that the user wants."""

    messages: tuple[dict[str, str], ...]
    """The conversation with its system prompt, up to the question."""
    answer: str
    rejected: str
    """The answer of the model; the same as ``answer`` if the user kept it."""

    def asks(self, messages: Messages) -> bool:
        """True if it corrects the answer to this conversation."""
        return self.messages == tuple(messages)

    def examples(self, objective: str) -> list[Example]:
        """The rows to train on: a conversation, of which only the last answer is learned; for ``dpo`` and ``orpo`` a
        pair; for ``kto`` a good and a bad answer. An answer that was kept is no pair.

        Raises:
            RowError: If it is no conversation that a chat template renders.
        """
        asked = [
            Message(turn["role"], turn["content"], train=False if turn["role"] == "assistant" else None)
            for turn in self.messages
        ]
        answer, rejected = Message("assistant", self.answer), Message("assistant", self.rejected)
        differs = bool(self.rejected.strip()) and self.rejected != self.answer
        if objective in ("dpo", "orpo"):
            return [make_preference(asked, [answer], [rejected])] if differs else []
        if objective == "kto":
            found = [make_labeled([*asked, answer], True)]
            return [*found, make_labeled([*asked, rejected], False)] if differs else found
        return [make_conversation([*asked, answer])]


def corrections_file(run: Run) -> Path:
    """The file of the corrections for the data of a run; it may not exist."""
    train = run.values().get("data.train")
    entries = [train] if isinstance(train, str) else [entry for entry in train or () if isinstance(entry, str)]
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:8]
    name = make_slug(short_name(entries[0])) if entries else "rows"
    return paths.home() / _DIRECTORY / f"{name}-{digest}.jsonl"


def read_corrections(path: Path) -> list[Correction]:
    """The corrections in a file, the oldest first; empty if there is none.

    Raises:
        UserError: If it cannot be read, or a line is no correction.
    """
    if not os.path.exists(path):
        return []
    found = []
    for number, line in read_lines(path, "Fix its permissions, or move it away."):
        try:
            found.append(_read(read_row(line)))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error.message}", "Fix the line, or remove it.") from error
    return found


def _read(row: dict[str, Any]) -> Correction:
    rejected = row.get("rejected", "")
    asked, messages = conversation_of(row), row.get("messages")
    last = messages[-1] if isinstance(messages, list) else {}
    answer = last.get("content") if last.get("role") == "assistant" else None
    if not isinstance(answer, str) or not answer.strip() or not isinstance(rejected, str):
        raise UserError("It is no conversation that ends with an answer.", "")
    return Correction(tuple(asked), answer, rejected)


def keep_correction(path: Path, correction: Correction) -> None:
    """Add a correction; one of the same conversation is replaced. The file is for the user alone, and changes at once
    or not at all.

    Raises:
        UserError: If no model could be trained on it, or the file cannot be read or written.
    """
    try:
        correction.examples("sft")
    except RowError as error:
        raise UserError(f"This answer cannot be trained on: {error.message}", "Change it.") from error
    _change(path, lambda found: [*(one for one in found if not one.asks(correction.messages)), correction])


def remove_correction(path: Path, messages: Messages) -> bool:
    """Remove the correction of a conversation; returns True if there was one.

    Raises:
        UserError: As :func:`keep_correction`.
    """
    if not any(one.asks(messages) for one in read_corrections(path)):
        return False
    _change(path, lambda found: [one for one in found if not one.asks(messages)])
    return True


def _change(path: Path, change: Callable[[list[Correction]], list[Correction]]) -> None:
    """Replace the content of a file; two apps take turns."""
    paths.make_private_dir(paths.home())
    paths.make_private_dir(path.parent)
    lock = open_lock_file(path.with_suffix(".lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(path, change(read_corrections(path)))
    finally:
        os.close(lock)


def _write(path: Path, corrections: Sequence[Correction]) -> None:
    text = "".join(f"{_line(one)}\n" for one in corrections)
    if len(text.encode()) > BYTES_LIMIT:
        raise UserError(
            f"{path} would have more than {BYTES_LIMIT >> 20} MB.", "Make a dataset of it, and move it away."
        )
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.", "Make room.") from error


def _line(correction: Correction) -> str:
    messages = [*correction.messages, {"role": "assistant", "content": correction.answer}]
    return json_line({"messages": messages, "rejected": correction.rejected})


def waiting_corrections(run: Run) -> list[Correction]:
    """The corrections for the data of a run that it was not trained on.

    Raises:
        UserError: If they cannot be read.
    """
    learned = run.values().get("data.corrections")
    known = read_corrections(Path(learned)) if isinstance(learned, str) else []
    return [one for one in read_corrections(corrections_file(run)) if one not in known]


def train_on_corrections(run: Run, step: int | None = None) -> ConfigDocument:
    """A new configuration that trains the result of an ended run further on all corrections and some of its rows.

    Its steps suffice for :data:`REPEATS` times each correction among :data:`OTHERS` times as many other rows. The
    held-out rows are measured and the corrected questions asked before and after.

    Args:
        run: The run.
        step: The step of a checkpoint; the result by default.

    Raises:
        UserError: If the run is live or has no such result, no correction waits, or a file cannot be written.
    """
    if not waiting_corrections(run):
        raise UserError("No correction waits.", "Correct an answer in the chat first.")
    document = train_further(run, step)
    path = corrections_file(run)
    corrections = read_corrections(path)
    document.set("data.corrections", str(_copy(path, corrections)))
    config = document.validate()
    # With kto a correction is two rows, a good and a bad answer.
    rows = len(corrections) * REPEATS * (1 + OTHERS) * (2 if config.train.objective == "kto" else 1)
    steps = math.ceil(rows / config.train.batch_size)
    document.set("train.max_steps", steps)
    document.set("train.epochs", None)
    if (config.checkpoint.every_steps or 0) > steps:
        document.set("checkpoint.every_steps", None)
    if holds_out(config):
        document.set("eval.baseline", True)
    return document


def _copy(path: Path, corrections: Sequence[Correction]) -> Path:
    """A copy of the file under a name of its content, which never changes."""
    digest = hashlib.sha256("".join(map(_line, corrections)).encode()).hexdigest()[:8]
    copy = path.with_name(f"{path.stem}.{digest}.jsonl")
    _write(copy, corrections)
    return copy
