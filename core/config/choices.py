"""Choices: the words that options may be set to, and what those of formats and objectives stand for."""

from __future__ import annotations

from typing import Literal, get_args

#: Turns of a conversation that are learned.
Supervise = Literal["assistant", "last", "all"]
#: What becomes of a row that is longer than ``train.max_length``.
Overlong = Literal["drop", "truncate", "refuse"]

Format = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "segments", "text", "tokens", "preference", "kto"
]

#: Every format, and what its rows hold.
FORMATS: dict[Format, str] = {
    "messages": "messages: a list of objects with role and content",
    "sharegpt": "conversations: a list of objects with from and value",
    "alpaca": "instruction, perhaps input, and output",
    "prompt_completion": "prompt and completion, or question and answer",
    "segments": "segments: a list of objects with text and label, true where it is learned",
    "text": "text",
    "tokens": "input_ids, perhaps with labels",
    "preference": "chosen and rejected answers",
    "kto": "an answer and a label that is true or false",
}
#: Formats that say how good answers are, which needs another loss than the usual one.
COMPARED: dict[Format, str] = {"preference": "preference pairs", "kto": "answers labeled good or bad"}
#: What is learned: answers as they are, or which ones are better.
Objective = Literal["sft", "dpo", "orpo", "kto"]
#: The format of the rows that an objective learns from; those that are not here take all others.
LEARNED: dict[Objective, Format] = {"dpo": "preference", "orpo": "preference", "kto": "kto"}

#: Parts that columns of a row play, keys of a message, and names of speakers.
ColumnRole = Literal[
    "messages",
    "user",
    "assistant",
    "context",
    "system",
    "history",
    "tools",
    "text",
    "chosen",
    "rejected",
    "label",
    "input_ids",
    "labels",
    "role",
    "content",
    "train",
    "user_role",
    "assistant_role",
    "system_role",
    "tool_role",
    "call_role",
]

ROLES: tuple[ColumnRole, ...] = get_args(ColumnRole)

#: Reasons to refuse a run before it trains, each of which may be allowed.
RefusalCode = Literal["format_ambiguous", "template_missing", "nothing_supervised", "stop_untrained", "eval_leak"]


def allowed_codes(value: RefusalCode | list[RefusalCode] | None) -> tuple[RefusalCode, ...]:
    """The codes of ``data.allow``."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


#: A tracker; each is the package of its library, and an extra of this project.
Tracker = Literal["wandb", "tensorboard", "trackio"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

#: What a preset is made for.
Aim = Literal["quick-look", "balanced", "best-quality", "long-context", "full-fine-tuning"]
AIMS: tuple[Aim, ...] = get_args(Aim)
