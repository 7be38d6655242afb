"""Plans of exports: source, destination, size and stages, without loading anything.

Stages are known by their activity. Each stands for some work: seconds for a billion parameters on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import paths
from core.config.schema import WEIGHT_METHODS
from core.directories import Progress, refuse_existing, require_space
from core.errors import UserError
from core.export.llama_cpp import MEAN_BITS, NotVerifiedError, gguf_bytes, refuse_unreadable, require_quantizer
from core.export.request import CONVERTED, MERGED_QUANTS, ExportRequest, Quant
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
    parameters: int | None
    """Parameters of the model; None if unknown."""

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
        """The reason why the file is not compared with the trained model; None if it is."""
        if not self.request.rows and self.request.kind != "card":
            return NotVerifiedError("The file is not verified: it was not to be compared.", "Leave out --rows 0.")
        try:
            refuse_unreadable("gguf" if self.request.adapter_only else self.request.kind)
        except NotVerifiedError as reason:
            return reason
        return None

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, without the trained model."""
        return {**vars(self), "request": self.request.to_dict(), "trained": None, "target": str(self.target)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExportPlan:
        """From :meth:`to_dict`.

        Raises:
            UserError: If the run has nothing to export any more.
        """
        request = ExportRequest.from_dict(data["request"])
        trained = find_trained(Run(request.run), request.step)
        return cls(**{**data, "request": request, "trained": trained, "target": Path(data["target"])})

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
    facts = ModelFacts() if request.kind == "card" else _base_facts(trained)
    size, peak = _bytes(request, trained, facts)
    largest = size
    # Without a named type, types are tried in order, and the last one is the largest.
    if request.kind == "merged" and request.quant is None:
        largest, peak = _bytes(replace(request, quant=MERGED_QUANTS[-1]), trained, facts)
    return ExportPlan(request, trained, _target(request, trained), size, largest, peak, facts.parameters)


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


def _bytes(request: ExportRequest, trained: TrainedModel, facts: ModelFacts) -> tuple[int | None, int | None]:
    """Bytes of an export, and most bytes on the disk during it; None if unknown."""
    if request.kind == "card":
        return 0, 1 << 20
    if request.kind == "adapter" or request.adapter_only:
        size = 0 if trained.adapter is None else _size(trained.adapter / "adapter_model.safetensors")
        # A GGUF file of an adapter is read together with a GGUF file of its base.
        base = _gguf_bytes(facts, "F32") if request.adapter_only else 0
        if request.adapter_only and facts.quantization is not None:
            base += 2 * (facts.parameters or 0)  # decoded for the converter
        return size, size + base + _BESIDE
    if facts.parameters is None or request.weights is None:
        return None, None
    first = merged_quant(request, trained)
    merged = facts.parameters * (4 if first == "F32" else 2)
    if request.kind == "merged":
        return merged, merged + _BESIDE
    is_exact = trained.file is not None and request.weights == trained.file.type
    size = _gguf_bytes(facts, request.weights, is_exact=is_exact)
    between = 0 if request.weights in CONVERTED else _gguf_bytes(facts, first)
    return size, size + merged + between + _BESIDE


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


COMPARING_BASE = "comparing the base model with that of the training"
MERGING = "merging the weights"
LOADING_TRAINED, MEASURING_TRAINED = "loading the trained model", "measuring the trained model"
MEASURING_BASE, ANSWERING = "measuring the base", "greedy answers of the trained model"
LOADING_PLAIN, MEASURING_PLAIN = "loading the base in 16 bits", "measuring the adapter on the base in 16 bits"
LOADING_FILE, MEASURING_FILE = "loading the file", "measuring the file"
CONVERTING_ADAPTER = "converting the adapter"
READING_MODEL, WRITING = "reading the model", "writing the weights"
LOADING_MODEL, IMPORTANCE, QUANTIZING = (
    "loading the model",
    "computing the importance matrix",
    "quantizing the weights",
)
HASHING = "hashing the files"

#: Work of a byte of each parameter that is hashed, read or written, or merged.
_HASHED, _MOVED, _MERGED = 1.0, 2.5, 13.0
#: Work to measure a row, to answer it, and to read the file with it.
_MEASURED, _ANSWERED, _READ = 1.7, 1.2, 2.0
#: Work of the importance matrix, and of the quantization.
_IMPORTANCE, _QUANTIZED = 90.0, 20.0
#: Seconds for a process to import torch and its family, and the converter.
_IMPORTED, _CONVERTER = 5.0, 3.0
#: Parameters of a model that is not known.
_USUAL = 1_000_000_000


@dataclass(frozen=True)
class Stage:
    """A stage of an export.

    Args:
        activity: Its activity in messages.
        work: Seconds for a billion parameters, about.
        seconds: Seconds for any model.
    """

    activity: str
    work: float
    seconds: float = 0.0


class WholeProgress:
    """Progress of a whole export from its stages, in estimated seconds; a :data:`~core.directories.Progress` itself.

    What is done only grows. A stage that is left out is taken from the total; an unexpected one, as a merge repeated in
    more bits, counts as nothing.

    Args:
        stages: The expected stages, in order.
        progress: Called with the activity, and the seconds that are done and those in all.
        parameters: Parameters of the model.
    """

    def __init__(self, stages: Sequence[Stage], progress: Progress, parameters: int | None = None) -> None:
        scale = (parameters or _USUAL) / 1e9
        self._left, self._progress = (
            [(stage.activity, stage.work * scale + stage.seconds) for stage in stages],
            progress,
        )
        self._total = sum(seconds for _, seconds in self._left)
        self._activity = ""
        self._begin = self._span = self._done = 0.0

    def __call__(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Report the progress of the present stage."""
        if activity != self._activity:
            self._enter(activity)
        within = min(max(done, 0) / total, 1.0) if done is not None and total else 0.0
        self._done = max(self._done, self._begin + self._span * within)
        whole = max(round(self._total), 1)
        self._progress(activity, min(round(self._done), whole), whole)

    def _enter(self, activity: str) -> None:
        """End the previous stage, and begin another."""
        self._begin += self._span
        number = next((number for number, (name, _) in enumerate(self._left) if name == activity), None)
        self._span = 0.0
        if number is not None:
            *skipped, (_, self._span) = self._left[: number + 1]
            self._total -= sum(seconds for _, seconds in skipped)
            del self._left[: number + 1]
        self._done = max(self._done, self._begin)
        self._activity = activity


def stages_of(plan: ExportPlan) -> list[Stage]:
    """The stages of a planned export, in order: of the files, then of their proof."""
    if plan.request.kind == "card":
        return [Stage(HASHING, 1.0)]  # there is nothing else
    hashed = Stage(HASHING, _HASHED * _weight(plan.request.weights))
    stages = [Stage(COMPARING_BASE, 2 * _HASHED), *_made(plan), hashed]
    return stages if plan.unverified is not None else [*stages, *_proof(plan)]


def _made(plan: ExportPlan) -> Iterator[Stage]:
    """Stages between the comparison of the base and the hashes of the files."""
    request, trained = plan.request, plan.trained
    if request.adapter_only:
        yield Stage(CONVERTING_ADAPTER, 1.0, _CONVERTER)
    elif request.kind != "adapter":
        first = merged_quant(request, trained)
        yield Stage(MERGING, _MERGED * (2 + _weight(first)))
        if request.kind == "merged":
            return
        quant = request.weights or "Q8_0"
        yield from _conversion(quant if quant in CONVERTED else first)
        if quant not in CONVERTED:
            if trained.file is None or quant != trained.file.type:
                yield from (Stage(LOADING_MODEL, 2 * _MOVED), Stage(IMPORTANCE, _IMPORTANCE))
            yield Stage(QUANTIZING, _QUANTIZED)


def _conversion(quant: Quant) -> Iterator[Stage]:
    yield from (Stage(READING_MODEL, 2 * _MOVED, _CONVERTER), Stage(WRITING, _MOVED * _weight(quant)))


def _proof(plan: ExportPlan) -> Iterator[Stage]:
    """The measurement of the trained model, and the comparison with it."""
    request, trained, rows = plan.request, plan.trained, plan.request.rows
    if request.adapter_only:
        yield from _conversion("F32")
    yield from (Stage(LOADING_TRAINED, 2 * _MOVED, _IMPORTED), Stage(MEASURING_TRAINED, _MEASURED * rows))
    if trained.adapter is not None:
        yield Stage(MEASURING_BASE, _MEASURED * rows)
    yield Stage(ANSWERING, _ANSWERED * rows)
    if trained.config.method.name == "qlora" and request.merge_from == "base":
        yield from (Stage(LOADING_PLAIN, 2 * _MOVED), Stage(MEASURING_PLAIN, _MEASURED * rows))
    imported = _IMPORTED if request.kind in ("merged", "adapter") else 0.0
    yield from (Stage(LOADING_FILE, _MOVED, imported), Stage(MEASURING_FILE, _READ * rows))


def _weight(quant: Quant | None) -> float:
    """Bytes of a parameter in a type of weights; next to none for an adapter."""
    return MEAN_BITS[quant] / 8 if quant is not None else 0.1
