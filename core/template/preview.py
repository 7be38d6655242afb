"""A row as a chat template shows it to the model: plain values for a person to look at."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.conversation import Example, Message

#: Shown where there is no row of a conversation: two questions, so that what stands between turns is seen too.
SAMPLE = Example(
    messages=(
        Message("user", "What is the capital of France?"),
        Message("assistant", "Paris."),
        Message("user", "And of Italy?"),
        Message("assistant", "Rome."),
    )
)

#: The answers of a preference pair, as people call them.
PAIR = ("better", "worse")
#: Tokens of a row that are shown; nobody reads further, and a screen of millions takes seconds to lay out.
MOST_SHOWN = 50_000


@dataclass(frozen=True)
class PreviewToken:
    """One token of a row, or a piece of its text where there is no tokenizer."""

    text: str
    """A character made of several tokens is given with the last of them."""
    learned: bool = False
    special: bool = False
    prompt: bool = False
    """Whether it is of the generation prompt, with which inference lets the model begin an answer."""


@dataclass(frozen=True)
class PreviewRow:
    """Tokens that the model sees at once."""

    tokens: tuple[PreviewToken, ...]
    """The first of them, at most :data:`MOST_SHOWN`."""
    length: int
    """How many there are."""
    learned: int = 0
    """Tokens that enter the loss."""
    cut: int | None = None
    """Where the greatest length ends it."""
    answer: str = ""
    """Which answer of a preference pair it ends with: one of :data:`PAIR`; empty for other rows."""


@dataclass(frozen=True)
class Preview:
    """A row as a template shows it."""

    rows: tuple[PreviewRow, ...] = ()
    """Several, where the template shows earlier turns differently, and of a preference pair both answers; without
    anything learned, where it is refused."""
    generation_prompt: str = ""
    problem: str = ""
    """Why the template cannot be used for the row, one sentence that may quote the template: sanitize it."""
    line: int | None = None
    """The line of the template that the problem comes from, from 1, where that is known."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.length for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens that enter the loss."""
        return sum(row.learned for row in self.rows)


@dataclass(frozen=True)
class RowLength:
    """How long a row is as tokens: of all that the model sees of it, of a pair those of its longer answer."""

    tokens: int
    learned: int
    is_long: bool = False
    """Whether any part of it goes beyond the greatest length."""


@dataclass(frozen=True)
class Refusal:
    """Why a row cannot be used; see :class:`~core.data.conversation.RowError`."""

    code: str
    message: str
