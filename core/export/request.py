"""Requests of exports: the source in the run, the kind of files, and the destination."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from core.errors import UserError

Kind = Literal["adapter", "merged", "gguf", "ollama", "card"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Quant = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
"""The types of weights in a GGUF file, as llama.cpp names them."""
QUANTS: tuple[Quant, ...] = get_args(Quant)
#: Types that llama.cpp's converter writes without its quantizer.
CONVERTED: tuple[Quant, ...] = ("F32", "F16", "BF16", "Q8_0")


MergeFrom = Literal["auto", "base", "quantized"]
#: The base's weights for the merge of an adapter: its own in 16 bit, its weights rounded to 4 bit as in training; by
#: default those of the training.
MERGE_FROM: tuple[MergeFrom, ...] = get_args(MergeFrom)
#: The types of weights of a merged model in the format of transformers, in the order in which they are tried where none
#: is named: most models are served in bf16, which has the fewest bits of mantissa.
MERGED_QUANTS: tuple[Quant, ...] = ("BF16", "F16", "F32")
#: Default types of weights. Q8_0 is hard to distinguish from 16 bit, at half the size, and needs no further packages.
_DEFAULT_QUANTS: dict[Kind, Quant] = {"merged": "BF16", "gguf": "Q8_0", "ollama": "Q8_0"}
#: Held-out rows for the comparison.
ROWS = 20
_MOST_ROWS = 1000


@dataclass(frozen=True)
class ExportRequest:
    """A request of an export.

    Raises:
        UserError: If its parts contradict each other.
    """

    run: Path
    """The run's directory."""
    kind: Kind
    step: int | None = None
    """The step of a checkpoint; None: the result, or its substitute, see
    :func:`core.runs.catalog.trained.find_trained`."""
    quant: Quant | None = None
    """The type of the weights; None for the kind's own: see :attr:`weights`."""
    out: Path | None = None
    """The directory to create, absolute; None for one in the home."""
    merge_from: MergeFrom = "auto"
    """The weights that the adapter is merged into."""
    adapter_only: bool = False
    """True if a GGUF file of the adapter alone is written, to be used with a GGUF file of the base."""
    rows: int = ROWS
    """Held-out rows for the comparison with the trained model; with none, the export stays unproven."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"There is no kind of export called {self.kind}.", f"There are {', '.join(KINDS)}.")
        if self.adapter_only and self.kind != "gguf":
            raise UserError("Only a GGUF file can be of the adapter alone.", "Use --to gguf, or --to adapter.")
        if self.quant is not None and self.quant not in self.quants:
            if not self.quants:
                what = "of the adapter alone" if self.adapter_only else f"to {self.kind}"
                raise UserError(f"An export {what} has no type of weights to choose.", "Leave --quant out.")
            raise UserError(
                f"An export to {self.kind} has no weights of type {self.quant}.", f"It has {', '.join(self.quants)}."
            )
        if self.merge_from not in MERGE_FROM:
            raise UserError(
                f"Weights are not merged from {self.merge_from}.", f"Merge them from {', '.join(MERGE_FROM)}."
            )
        if not 0 <= self.rows <= _MOST_ROWS:
            raise UserError(f"An export is compared on 0 to {_MOST_ROWS} rows, not {self.rows}.", "Change --rows.")

    @property
    def quants(self) -> tuple[Quant, ...]:
        """The types of weights of its kind."""
        if self.adapter_only:
            return ()
        return {"merged": MERGED_QUANTS, "gguf": QUANTS, "ollama": QUANTS}.get(self.kind, ())

    @property
    def weights(self) -> Quant | None:
        """The type of the weights; None for kinds without weights of the whole model."""
        return self.quant or (None if self.adapter_only else _DEFAULT_QUANTS.get(self.kind))

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON."""
        values: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExportRequest:
        """From :meth:`to_dict`.

        Raises:
            ValueError: If a value is of another type.
            UserError: If its parts contradict each other.
        """
        request: ExportRequest = _adapter().validate_python(data)
        return request


def _adapter() -> Any:
    from pydantic import TypeAdapter  # --help needs this module without it

    return TypeAdapter(ExportRequest)
