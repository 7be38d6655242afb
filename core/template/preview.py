"""Token previews of rows: plain values for display, which pass between processes."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.conversation import Example, Message

#: Example for previews without a conversation; two questions, to show the text between turns.
SAMPLE = Example(
    messages=(
        Message("user", "What is the capital of France?"),
        Message("assistant", "Paris."),
        Message("user", "And of Italy?"),
        Message("assistant", "Rome."),
    )
)

#: Display names of the answers of a preference pair.
PAIR = ("better", "worse")
#: Most tokens of a row displayed; layout of millions takes seconds.
MOST_SHOWN = 50_000


@dataclass(frozen=True)
class PreviewToken:
    """A token of a row, or a piece of its text without a tokenizer."""

    text: str
    """Text of the token. A character made of several tokens is in the text of the last of them."""
    learned: bool = False
    special: bool = False
    prompt: bool = False
    """True if it is part of the generation prompt."""


@dataclass(frozen=True)
class PreviewRow:
    """A training sequence of a row."""

    tokens: tuple[PreviewToken, ...]
    """Its first tokens, at most :data:`MOST_SHOWN`."""
    length: int
    """Number of tokens."""
    learned: int = 0
    """Number of tokens in the loss."""
    cut: int | None = None
    """Position at which the row is truncated."""
    answer: str = ""
    """Name of the answer of a preference pair, from :data:`PAIR`; empty for other rows."""


@dataclass(frozen=True)
class Preview:
    """Preview of a row as a template renders it."""

    rows: tuple[PreviewRow, ...] = ()
    """Several rows if the template renders earlier turns differently, and for both answers of a preference pair;
    without supervised tokens if the row is refused.
    """
    generation_prompt: str = ""
    problem: str = ""
    """Reason why the template cannot be used for the row, in one sentence. It may quote the template: sanitize it."""
    line: int | None = None
    """Line of the template that causes the problem, from 1, if known."""

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return sum(row.length for row in self.rows)

    @property
    def learned(self) -> int:
        """Number of tokens in the loss, of all sequences."""
        return sum(row.learned for row in self.rows)


@dataclass(frozen=True)
class RowLength:
    """Token count of all sequences of a row; for a preference pair, of its longer answer."""

    tokens: int
    learned: int
    is_long: bool = False
    """True if any sequence exceeds the greatest length."""


@dataclass(frozen=True)
class Refusal:
    """Reason why a row cannot be used; see :class:`~core.data.conversation.RowError`."""

    code: str
    message: str
