"""Choices: the values that options accept, with a description of each format and objective."""

from __future__ import annotations

from typing import Literal, get_args

#: Turns of a conversation that are learned.
Supervise = Literal["assistant", "last", "all"]
#: The treatment of a row that is longer than ``train.max_length``.
Overlong = Literal["drop", "truncate", "refuse"]

Format = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "segments", "text", "tokens", "preference", "kto"
]

#: Every dataset format, with a description of its rows.
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
#: Preference formats: rows that say how good answers are, which need another loss than supervised fine-tuning.
COMPARED: dict[Format, str] = {"preference": "preference pairs", "kto": "answers labeled good or bad"}
#: The training objective: supervised fine-tuning on answers, or preference optimization.
Objective = Literal["sft", "dpo", "orpo", "kto"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
#: The format that an objective needs; an objective that is not here takes all the others.
LEARNED: dict[Objective, Format] = {"dpo": "preference", "orpo": "preference", "kto": "kto"}


def objective_for(held: Format) -> Objective:
    """The objective for rows of a format."""
    return next((objective for objective, wanted in LEARNED.items() if wanted == held), "sft")


#: Roles: of columns in a row, of keys in a message, and of speakers.
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

#: The type of a GGUF file that a run is trained for.
FileType = Literal["q8_0", "q4_0"]

#: Reasons to refuse a run before it trains, each of which may be allowed.
RefusalCode = Literal["format_ambiguous", "template_missing", "nothing_supervised", "stop_untrained", "eval_leak"]


def allowed_codes(value: RefusalCode | list[RefusalCode] | None) -> tuple[RefusalCode, ...]:
    """The codes of ``data.allow``."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


#: An experiment tracker; each is the package of its library, and an extra of this project.
Tracker = Literal["wandb", "tensorboard", "trackio"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

#: The aim of a preset.
Aim = Literal["quick-look", "balanced", "best-quality", "long-context", "full-fine-tuning"]
AIMS: tuple[Aim, ...] = get_args(Aim)

#: Variables of a chat template that every rendering is given, so that no default of them is used.
GIVEN_VARIABLES = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"),
        *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
    }
)
