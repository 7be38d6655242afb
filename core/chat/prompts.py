"""Prompt files: questions that a run answers at each evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.chat.request import ChatRequest
from core.errors import UserError
from core.path_kind import JSON_LINES_SUFFIXES
from core.small_files import read_small

#: Most prompts in a file: all of them are answered at every evaluation.
PROMPT_LIMIT = 100
#: Most bytes of a file of prompts or corrections.
BYTES_LIMIT = 4 << 20
_OBJECT_HINT = "Write an object on each line, with messages or prompt."


def read_prompts(path: Path, system: str = "") -> list[list[dict[str, str]]]:
    """The conversations in a prompt file, each ending with the user's turn.

    A file that ends in ``.jsonl`` has one object per line, with ``messages`` (``role`` and ``content`` each; a final
    answer is left out) or ``prompt``; any other file has one prompt per line. Empty lines are skipped.

    Args:
        path: The file.
        system: The system message that is added to a prompt; empty for none.

    Raises:
        UserError: If it cannot be read, has no prompt or more than :data:`PROMPT_LIMIT`, or a line is not a prompt.
    """
    numbered = read_lines(path, "Fix eval.prompts, or leave it out.")
    if not numbered:
        raise UserError(f"{path} has no prompt.", "Write one on each line, or leave eval.prompts out.")
    if len(numbered) > PROMPT_LIMIT:
        raise UserError(
            f"{path} has {len(numbered)} prompts, and all are answered at each evaluation.",
            f"Keep at most {PROMPT_LIMIT}.",
        )
    as_json = path.suffix.lower() in JSON_LINES_SUFFIXES
    conversations: list[list[dict[str, str]]] = []
    for number, line in numbered:
        try:
            row = read_row(line) if as_json else {"prompt": line}
            conversations.append(conversation_of(row, system))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error.message}", error.hint) from error
    return conversations


def read_lines(path: Path, hint: str) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, without surrounding whitespace, with their numbers from 1.

    Args:
        path: The file.
        hint: Advice where it cannot be read.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        text = read_small(path, BYTES_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8.", "Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", hint) from error
    # Not splitlines, which also splits at characters that are allowed in a JSON string.
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_row(line: str) -> dict[str, Any]:
    """A line as a JSON object.

    Raises:
        UserError: If it is invalid.
    """
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError("It is not JSON.", _OBJECT_HINT) from error
    if not isinstance(row, dict):
        raise UserError("It is no JSON object.", _OBJECT_HINT)
    return row


def conversation_of(row: Mapping[str, Any], system: str = "") -> list[dict[str, str]]:
    """The conversation in a row with ``prompt`` or ``messages``, without a final answer.

    Args:
        row: The row.
        system: The system message that is added to a prompt; empty for none.

    Raises:
        UserError: If no model could answer it.
    """
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and messages is None:
        front = [{"role": "system", "content": system}] if system else []
        messages = [*front, {"role": "user", "content": prompt}]
    elif isinstance(messages, list) and prompt is None:
        if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
    else:
        raise UserError("It has neither messages nor a prompt.", "Give one of the two.")
    # Refuses conversations that no model could answer.
    ChatRequest(messages)
    return [{"role": message["role"], "content": message["content"]} for message in messages]
