"""Rows as tokens: a token sequence with its loss mask, and the sequences that belong to it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from typing import Self

IdsT = TypeVar("IdsT", bound=Sized)
MaskT = TypeVar("MaskT")
#: Token ids, 32-bit.
Ids: TypeAlias = "array[int]"


@dataclass(frozen=True)
class TokenRow(Generic[IdsT, MaskT]):
    """One row as a training sequence, in the arrays of its package: those of Python, or those of numpy."""

    input_ids: IdsT
    """Token ids, 32-bit."""
    supervised: MaskT
    """For each token, one byte: whether it is trained on; never the first token, which is not predicted."""
    further: tuple[Self, ...] = ()
    """Sequences for turns that the template renders differently once later turns follow; each turn is trained on in one
    sequence.
    """
    rejected: Self | None = None
    """The same prompt with the worse answer of a preference pair; this row has the better one."""
    label: bool | None = None
    """Whether the answer is labeled good; None for other rows."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def with_further(self, further: Sequence[Self]) -> Self:
        """The same row with further ones."""
        return replace(self, further=tuple(further))

    @property
    def rows(self) -> tuple[Self, ...]:
        """This row and the further ones."""
        return (self.with_further(()), *self.further) if self.further else (self,)

    @property
    def sequences(self) -> tuple[Self, ...]:
        """Sequences for the model: this row, and of a preference pair the other one; a pair has no further rows."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence, which the length limit applies to."""
        return max(len(part) for sequence in self.sequences for part in sequence.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all its sequences, without further ones."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True)
class MaskedRow(TokenRow[Ids, bytearray]):
    """One row as :class:`~core.template.mask.Masker` makes it."""

    cut: int | None = None
    """Position at which the row is truncated, if it exceeds the greatest length."""
    left_out: str = ""
    """Part of the prompt that the template does not render, in a sentence; empty if it renders all."""

    @property
    def supervised_count(self) -> int:
        """Number of tokens in the loss, without further sequences."""
        return self.supervised.count(1)
