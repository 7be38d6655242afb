"""Plans of exports: source, destination and size, without loading anything."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from core import paths
from core.config.schema import WEIGHT_METHODS
from core.directories import refuse_existing, require_space
from core.errors import UserError
from core.export.gguf.checks import require_quantizer
from core.export.gguf.sizes import gguf_bytes
from core.export.request import CONVERTED, MERGED_QUANTS, ExportRequest, Quant
from core.export.verify import NotVerifiedError, refuse_unreadable
from core.models.find import STARTER_NAME, find_model, model_path
from core.models.inspection import STARTER_FACTS, ModelFacts
from core.models.sandboxed import inspect_model
from core.runs.catalog.trained import TrainedModel, find_trained
from core.runs.record.store import Run
from core.units import format_bytes

#: Kinds with a GGUF file of the whole model.
_WHOLE = ("gguf", "ollama")
#: Bytes beside the weights: tokenizer, records, metadata.
_BESIDE = 32 << 20


@dataclass(frozen=True)
class ExportPlan:
    """A planned export."""

    request: ExportRequest
    trained: TrainedModel
    target: Path
    """The directory to create."""
    size: int | None
    """Bytes of the export, about; None if unknown."""
    largest: int | None
    """Bytes of the export in its largest possible type of weights: more than :attr:`size` for a merged model without a
    named type."""
    peak: int | None
    """Most bytes on the disk during the export, in that type."""
    tries_both: bool
    """True if the adapter is merged into both the base's own weights and 4-bit rounded ones, to take the better."""

    @property
    def size_in_words(self) -> str:
        """Its size, as a part of a sentence; empty if unknown."""
        if not self.size or not self.largest:
            return ""
        words = f"about {format_bytes(self.size)}"
        if self.largest > self.size:
            words += f", or {format_bytes(self.largest)} if only {MERGED_QUANTS[-1]} answers as the trained model does"
        return words

    @property
    def unverified(self) -> NotVerifiedError | None:
        """The reason why this machine cannot compare the file with the trained model; None if it can."""
        try:
            refuse_unreadable("gguf" if self.request.adapter_only else self.request.kind)
        except NotVerifiedError as reason:
            return reason
        return None

    def check(self) -> None:
        """Refuse an export that could not be written.

        Raises:
            UserError: If the target exists, or the disk has too little space.
        """
        refuse_existing(self.target)
        if self.peak is not None:
            place = paths.existing_parent(self.target.parent)
            hint = "Make room, or name a directory on a larger disk with --out."
            if self.largest != self.size:
                hint = "Make room, name a directory on a larger disk with --out, or a type of weights with --quant."
            require_space(place, self.peak, "the export", hint)


def plan_export(request: ExportRequest) -> ExportPlan:
    """Plan an export.

    Raises:
        UserError: If the run has nothing to export, the request does not fit the trained model, or the writer of such
            a file is not installed.
    """
    run = Run(request.run)
    trained = find_trained(run, request.step)
    if request.quant is None and trained.file is not None and request.kind in _WHOLE and not request.adapter_only:
        request = replace(request, quant=trained.file.type)
    _check_kind(request, trained)
    if request.kind in _WHOLE and not request.adapter_only and request.weights is not None:
        require_quantizer(request.weights)
    tries_both = _tries_both(request, trained)
    variants = 2 if tries_both else 1
    size, peak = _bytes(request, trained, variants)
    largest = size
    # Without a named type, types are tried in order, and the last one is the largest.
    if request.kind == "merged" and request.quant is None:
        largest, peak = _bytes(replace(request, quant=MERGED_QUANTS[-1]), trained, variants)
    return ExportPlan(request, trained, _target(request, trained), size, largest, peak, tries_both)


def _check_kind(request: ExportRequest, trained: TrainedModel) -> None:
    method = trained.config.method.name
    has_adapter = method not in WEIGHT_METHODS
    if not has_adapter and (request.kind == "adapter" or request.adapter_only):
        raise UserError(
            f"Run {trained.run.id} trained the weights themselves (method.name = {method}), and has no adapter.",
            "Export it as merged or gguf.",
        )
    if request.merge_from == "quantized" and method != "qlora":
        raise UserError(
            f"Run {trained.run.id} was trained on weights that are not rounded to 4 bit (method.name = {method}).",
            "Leave --merge-from out.",
        )
    if request.merge_from == "base" and method == "qlora" and trained.file is not None:
        raise UserError(
            f"{trained.label} was trained for a {trained.file.type} file, with the base rounded to 4 bit before.",
            "Leave --merge-from out.",
        )


def _tries_both(request: ExportRequest, trained: TrainedModel) -> bool:
    merges = request.kind in ("merged", "gguf", "ollama") and not request.adapter_only
    return merges and request.merge_from == "auto" and trained.config.method.name == "qlora" and not trained.file


def _target(request: ExportRequest, trained: TrainedModel) -> Path:
    """The requested directory; by default one in the home named by run, step, kind and type."""
    if request.out is not None:
        return request.out
    step = [] if trained.step is None else [f"step-{trained.step}"]
    kind = ["adapter", "gguf"] if request.adapter_only else [request.kind]
    # A merged model without a named type gets the first type that meets its bar.
    named = request.quant if request.kind == "merged" else request.weights
    weights = [] if named is None else [named.lower()]
    return paths.exports_dir() / "-".join([trained.run.id, *step, *kind, *weights])


def _bytes(request: ExportRequest, trained: TrainedModel, variants: int) -> tuple[int | None, int | None]:
    """Bytes of an export, and most bytes on the disk during it; None if unknown."""
    if request.kind == "card":
        return 0, 1 << 20
    if request.kind == "adapter" or request.adapter_only:
        size = 0 if trained.adapter is None else _size(trained.adapter / "adapter_model.safetensors")
        # A GGUF file of an adapter is read together with a GGUF file of its base.
        facts = _base_facts(trained) if request.adapter_only else ModelFacts()
        base = _gguf_bytes(facts, "F32") if request.adapter_only else 0
        if facts.quantization is not None:
            base += 2 * (facts.parameters or 0)  # decoded for the converter
        return size, size + base + _BESIDE
    facts = _base_facts(trained)
    if facts.parameters is None or request.weights is None:
        return None, None
    first = merged_quant(request, trained)
    merged = facts.parameters * (4 if first == "F32" else 2)
    if request.kind == "merged":
        return merged, variants * merged + _BESIDE
    is_exact = trained.file is not None and request.weights == trained.file.type
    size = _gguf_bytes(facts, request.weights, is_exact=is_exact)
    between = 0 if request.weights in CONVERTED else _gguf_bytes(facts, first)
    return size, size + variants * merged + between + _BESIDE


def merged_quant(request: ExportRequest, trained: TrainedModel) -> Quant:
    """The type of the merged weights of an export, or of its source."""
    weights = request.weights or "BF16"
    if request.kind == "merged" or weights in ("F32", "BF16"):
        return weights
    if trained.file is not None:
        return "F32"  # holds the trained weights exactly
    # The next step rounds to fewer bits; 16 bits with a mantissa of 11 add nothing to that.
    return "F16"


def _gguf_bytes(facts: ModelFacts, quant: Quant, *, is_exact: bool = False) -> int:
    """Bytes of a GGUF file of a model; 0 if unknown.

    Args:
        facts: Of the model.
        quant: The type of the file.
        is_exact: Whether the model was trained for this file: embeddings and head are Q8_0 then, and nothing is
            calibrated.
    """
    if facts.parameters is None:
        return 0
    embeddings = "Q8_0" if is_exact else None
    return gguf_bytes(facts.parameters, facts.architecture, quant, has_imatrix=not is_exact, embeddings=embeddings)


def _base_facts(trained: TrainedModel) -> ModelFacts:
    """Facts of the base, from the headers of its files; empty if unknown."""
    base = find_model(trained.base)
    if base is None:
        path = model_path(trained.base)
        if not os.path.isfile(path):
            return STARTER_FACTS if trained.base == STARTER_NAME else ModelFacts()
        base = path
    return inspect_model(base)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
