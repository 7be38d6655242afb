"""The agreement of an exported file with the model that was trained, on rows that were held out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from core.export.request import Quant

#: Divergence from the untouched base, by that from the trained model, below which a file is the base itself; and the
#: least divergence of these two models from each other, in nats, for which that can be told.
_NEARER_TO_BASE, _LEARNED = 0.5, 1e-3


@dataclass(frozen=True)
class Figures:
    """Differences of a file from one model, over the positions of the answers."""

    mean_kl: float
    """Mean Kullback-Leibler divergence of the next token, in nats."""
    top1: float
    """Share of positions at which both find the same token the likeliest."""
    max_delta: float
    """Greatest difference of two logits, each row of them centered on its mean."""
    error: float
    """Mean square of these differences, by the mean square of the model's own logits, centered."""


@dataclass(frozen=True)
class Agreement:
    """What an independent reader of the file answers, against what the trained model answers in fp32.

    A figure that was not measured is None.
    """

    rows: int
    """Rows compared."""
    prompts_equal: bool
    """Whether the rendered prompts of all rows have the same token ids."""
    mean_kl: float | None
    """Mean Kullback-Leibler divergence of the next token, in nats, over the positions of the answers."""
    top1: float | None
    """Share of these positions at which both find the same token the likeliest."""
    max_delta: float | None
    """Greatest difference of two logits, each row of them centered on its mean."""
    greedy_equal: int | None
    """Rows whose greedy answers are equal, token by token."""
    reader: str
    """The program that read the file, with its version."""
    greedy_rows: int | None = None
    """Rows that were answered greedily; plain text and tokens are not."""
    data: str = ""
    """Where the rows are from: ``eval``, ``held_out``, or ``training`` where nothing was held out."""
    arithmetic: str = "fp32"
    """What the trained model was measured in: ``fp32``, or that of its training where fp32 does not fit."""
    quantized_base: bool = False
    """Whether the model was trained on a base in 4 bits, which a merge may be made without."""
    plain: Figures | None = None
    """The file against the same adapter on the base in 16 bits, where that base was trained on in 4 bits."""
    error: float | None = None
    """Mean square of the differences of logits, by that of the trained model's own logits; 0 where they are equal."""
    base_kl: float | None = None
    """Mean divergence of the file from the untouched base, in nats."""
    learned_kl: float | None = None
    """Mean divergence of the base from the trained model, in nats: what training has changed."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Agreement:
        """What :meth:`to_dict` has written, by this version or another.

        Raises:
            TypeError: If a field that every version has is not there.
        """
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        plain = values.get("plain")
        return cls(**{**values, "plain": Figures(**plain) if isinstance(plain, dict) else None})

    @property
    def judged(self) -> Figures | None:
        """The figures that the bars apply to: against the model that was exported.

        That is the trained model; of one that was trained on a base in 4 bits, it may also be the same adapter on the
        base in 16 bits, and then the nearer of the two. None where they cannot be told from what arithmetic or the base
        adds.
        """
        own = None
        if None not in (self.mean_kl, self.top1, self.max_delta):
            own = Figures(self.mean_kl or 0.0, self.top1 or 0.0, self.max_delta or 0.0, self.error or 0.0)
        if self.plain is not None:
            return self.plain if own is None or self.plain.mean_kl <= own.mean_kl else own
        return own if self.arithmetic == "fp32" and not self.quantized_base else None

    @property
    def notes(self) -> list[str]:
        """What else there is to know, a sentence each."""
        told = []
        if self.data == "training":
            told.append("Nothing was held out, so it was compared on rows that were trained on.")
        if self.arithmetic != "fp32":
            told.append(
                f"The trained model does not fit in memory in fp32 and was measured in {self.arithmetic}, so what "
                "rounding adds is in the figures, and no bars are applied."
            )
        elif self.quantized_base and self.plain is None:
            told.append("The base in 16 bits does not fit in memory, so its rounding is in the figures, without bars.")
        found = self.judged
        if found is not None and self.learned_kl is not None and found.mean_kl > max(self.learned_kl, _LEARNED):
            told.append(
                f"Its weights are rounded so far ({found.mean_kl:.2g} nats) that it changes more than training did "
                f"({self.learned_kl:.2g} nats): take a wider type."
            )
        return told

    def failures(self, quant: Quant | None) -> list[str]:
        """The bars that it misses, a sentence each.

        Args:
            quant: The type of the file's weights; None for an adapter, whose weights are as they were trained.
        """
        failed = []
        if not self.prompts_equal:
            failed.append("The file's tokenizer or template makes other tokens of a prompt than training did.")
        if self._is_base():
            failed.append("It answers as the base does: what was learned is not in it.")
        found, bar = self.judged, BARS[quant or "F32"]
        name = quant or "an adapter"
        if found is None:
            return failed
        if bar.max_delta is not None and not found.max_delta <= bar.max_delta:
            failed.append(f"Its logits differ by up to {found.max_delta:.3g}; {name} allows {bar.max_delta:g}.")
        if bar.mean_kl is not None and not found.mean_kl <= bar.mean_kl:
            failed.append(f"Its mean divergence is {found.mean_kl:.3g} nats; {name} allows {bar.mean_kl:.3g}.")
        if bar.error is not None and not found.error <= bar.error:
            failed.append(
                f"Its logits have little to do with those of the model: they differ by {found.error:.0%} of them; "
                f"{name} allows {bar.error:.0%}."
            )
        if bar.top1 is not None and not found.top1 >= bar.top1:
            failed.append(
                f"The likeliest token is the same at {found.top1:.1%} of positions; {name} wants {bar.top1:.1%}."
            )
        return failed

    def _is_base(self) -> bool:
        """Whether the file is nearer to the untouched base than to the model that was trained."""
        if self.base_kl is None or self.mean_kl is None or math.isnan(self.mean_kl):
            return False
        return self.mean_kl > _LEARNED and self.base_kl < _NEARER_TO_BASE * self.mean_kl


@dataclass(frozen=True)
class Bar:
    """Limits that the agreement of a file has to keep; None where there is none."""

    max_delta: float | None = None
    mean_kl: float | None = None
    top1: float | None = None
    error: float | None = None


#: The first three were measured with llama.cpp on a model of 135 million parameters, with room for rounding. What fewer
#: bits cost depends on the model, and is told. Their bars are wide, and only tell a file that is broken: that model,
#: which is small, had been in 4 bits before and so loses much, came to 0.002, 0.007, 0.04, 0.03 and 0.19; a file of
#: another model comes to 1 and more.
BARS: dict[Quant, Bar] = {
    "F32": Bar(max_delta=0.01),
    "F16": Bar(mean_kl=1e-4, top1=0.99),
    "BF16": Bar(mean_kl=2e-3),
    "Q8_0": Bar(error=0.1),
    "Q6_K": Bar(error=0.1),
    "Q5_K_M": Bar(error=0.4),
    "Q4_K_M": Bar(error=0.4),
    "Q4_0": Bar(error=0.8),
}
