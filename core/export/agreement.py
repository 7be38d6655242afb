"""The agreement of an exported file with the model that was trained, on rows that were held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from core.export.kinds import Quant


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

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def failures(self, quant: Quant) -> list[str]:
        """The bars that it misses, a sentence each; none for quantizations that have no bar.

        Args:
            quant: The type of the file's weights.
        """
        failed = []
        if not self.prompts_equal:
            failed.append("The file's tokenizer or template makes other tokens of a prompt than training did.")
        bar = BARS.get(quant, Bar())
        if bar.max_delta is not None and self.max_delta is not None and not self.max_delta <= bar.max_delta:
            failed.append(f"Its logits differ by up to {self.max_delta:.3g}; {quant} allows {bar.max_delta:g}.")
        if bar.mean_kl is not None and self.mean_kl is not None and not self.mean_kl <= bar.mean_kl:
            failed.append(f"Its mean divergence is {self.mean_kl:.3g} nats; {quant} allows {bar.mean_kl:g}.")
        if bar.top1 is not None and self.top1 is not None and not self.top1 >= bar.top1:
            failed.append(
                f"The likeliest token is the same at {self.top1:.1%} of positions; {quant} wants {bar.top1:.1%}."
            )
        return failed


@dataclass(frozen=True)
class Bar:
    """What the agreement of a file has to reach; None where nothing is asked."""

    max_delta: float | None = None
    mean_kl: float | None = None
    top1: float | None = None


#: Measured with llama.cpp on a model of 135 million parameters, with room for rounding. Fewer bits have no bar: what
#: they cost depends on the model, and is told.
BARS: dict[Quant, Bar] = {
    "F32": Bar(max_delta=0.01),
    "F16": Bar(mean_kl=1e-4, top1=0.99),
    "BF16": Bar(mean_kl=2e-3),
}
