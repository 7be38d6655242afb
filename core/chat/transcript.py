"""A conversation for display, for requests to a model, and for saving."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import paths
from core.errors import UserError


@dataclass(frozen=True)
class Turn:
    """A message of the user or an answer."""

    role: str
    """``user`` or ``assistant``."""
    content: str
    source: str = ""
    """The source of an answer: ``base``, ``adapter`` or ``step-N``; empty for the user."""


@dataclass
class Transcript:
    """Turns of user and model in alternation, after a system prompt that may be empty."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def ask(self, content: str) -> None:
        """Add the user's message; it replaces an unanswered question before it.

        Raises:
            UserError: If it is empty.
        """
        if not content.strip():
            raise UserError("There is nothing to ask.", "Write a message.")
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()
        self.turns.append(Turn("user", content))

    def answer(self, content: str, source: str) -> None:
        """Add the model's answer to the last question."""
        if not self.turns or self.turns[-1].role != "user":
            raise ValueError("there is no question to answer")
        self.turns.append(Turn("assistant", content, source))

    def drop_answer(self) -> bool:
        """Remove the last answer, so that its question can be asked again; False if there is none."""
        if not self.turns or self.turns[-1].role != "assistant":
            return False
        self.turns.pop()
        return True

    def drop_last(self) -> str:
        """Remove the last question, with its answer if it has one.

        Returns:
            The question, for editing and asking again; empty if there was none.
        """
        self.drop_answer()
        return self.turns.pop().content if self.turns else ""

    def clear(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns.clear()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation in the format of model requests and datasets."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, *({"role": turn.role, "content": turn.content} for turn in self.turns)]

    def to_json(self) -> str:
        """The conversation as one line: ``messages``, and ``sources`` with the source of each answer."""
        record: dict[str, Any] = {
            "messages": self.messages,
            "sources": [turn.source for turn in self.turns if turn.role == "assistant"],
        }
        return json.dumps(record, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Append the conversation to a JSONL file, as a row for training; the file is made if need be.

        Raises:
            UserError: If there is nothing to save, or the file cannot be written.
        """
        if not self.turns:
            raise UserError("The conversation is empty; there is nothing to save.", "Ask something first.")
        line = (self.to_json() + "\n").encode("utf-8", errors="replace")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, paths.FILE_MODE)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                if _ends_in_mid_line(file.fileno()):
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {error.strerror}.", "Choose another file, or make room."
            ) from error


def _ends_in_mid_line(descriptor: int) -> bool:
    """Whether a file's last line has no newline, so that another row would be joined to it."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
