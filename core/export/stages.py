"""Stages of an export, and its progress as a single share that only grows.

Stages are known by their activity. Each stands for some work: bytes read or written for each parameter of the model,
so that a pass of a row over the weights counts as a share of reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.directories import Progress
from core.export.gguf.sizes import MEAN_BITS
from core.export.plan import ExportPlan, merged_quant
from core.export.request import CONVERTED, Quant

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

#: Bytes of a parameter of the base, and the work of a byte that is only hashed.
_BASE, _HASHED = 2.0, 0.5
#: Work to measure a row, to answer it, and to read the file with it: bytes of a parameter.
#: By the seconds of an export of 135 million parameters on two cores, ``Q4_K_M`` with 16 rows.
_MEASURED, _ANSWERED, _READ = 0.7, 4.5, 1.5
#: Work of the importance matrix, and of the quantization; by the same export.
_IMPORTANCE, _QUANTIZED = 80.0, 10.0
#: Resolution of a share.
_PARTS = 1000


@dataclass(frozen=True)
class Stage:
    """A stage of an export.

    Args:
        activity: Its activity in messages.
        work: Bytes that are read or written for each parameter, about.
    """

    activity: str
    work: float


class WholeProgress:
    """Progress of a whole export from its stages; a :data:`~core.directories.Progress` itself.

    A skipped stage leaves its part to the later ones. An unexpected stage, as a merge repeated in more bits, gets a
    part of the remainder; a stage without work gets none.

    Args:
        stages: The expected stages, in order.
        progress: Called with the activity and the progress of the export, in thousandths.
    """

    def __init__(self, stages: Sequence[Stage], progress: Progress) -> None:
        self._left, self._progress = list(stages), progress
        self._work = {stage.activity: stage.work for stage in reversed(stages)}
        self._activity = ""
        self._begin = self._span = self._share = 0.0

    def __call__(self, activity: str, done: int | None = None, total: int | None = None) -> None:
        """Report the progress of the present stage."""
        if activity != self._activity:
            self._enter(activity)
        within = min(done / total, 1.0) if done is not None and total else 0.0
        self._share = max(self._share, self._begin + self._span * within)
        self._progress(activity, round(self._share * _PARTS), _PARTS)

    def _enter(self, activity: str) -> None:
        """End the previous stage, and begin another."""
        self._begin += self._span
        number = next((number for number, stage in enumerate(self._left) if stage.activity == activity), None)
        if number is None:
            work = self._work.get(activity, 0.0)
        else:
            work = self._left[number].work
            del self._left[: number + 1]
        rest = sum(stage.work for stage in self._left)
        self._span = (1.0 - self._begin) * work / (work + rest) if work else 0.0
        self._share = max(self._share, self._begin)
        self._activity = activity


def stages_of(plan: ExportPlan) -> list[Stage]:
    """The stages of a planned export, in order."""
    if plan.request.kind == "card":
        return [Stage(HASHING, 1.0)]  # there is nothing else
    hashed = Stage(HASHING, _HASHED * _bytes(plan.request.weights))
    return [Stage(COMPARING_BASE, _HASHED * _BASE), *_made(plan), hashed]


def _made(plan: ExportPlan) -> Iterator[Stage]:
    """Stages between the comparison of the base and the hashes of the files."""
    request, trained = plan.request, plan.trained
    if request.kind == "adapter":
        yield from _proof(plan, is_first=True)
    elif request.adapter_only:
        yield Stage(CONVERTING_ADAPTER, 0.1)
        if plan.unverified is None:
            yield from _conversion("F32")
            yield from _proof(plan, is_first=True)
    else:
        yield from _merges(plan)
        if request.kind == "merged":
            if not plan.tries_both:
                yield from _proof(plan, is_first=True)
            return
        quant = request.weights or "Q8_0"
        yield from _conversion(quant if quant in CONVERTED else merged_quant(request, trained))
        if quant not in CONVERTED:
            is_exact = trained.file is not None and quant == trained.file.type
            if not is_exact:
                yield from (Stage(LOADING_MODEL, _BASE), Stage(IMPORTANCE, _IMPORTANCE))
            yield Stage(QUANTIZING, _QUANTIZED)
        yield from _proof(plan, is_first=not plan.tries_both)


def _merges(plan: ExportPlan) -> Iterator[Stage]:
    """The merge; if both ways are tried, each with its comparison."""
    merge = Stage(MERGING, _BASE + _bytes(merged_quant(plan.request, plan.trained)))
    yield merge
    if plan.tries_both:
        yield from _proof(plan, is_first=True)
        yield merge
        yield from _proof(plan, is_first=False)


def _conversion(quant: Quant) -> Iterator[Stage]:
    yield from (Stage(READING_MODEL, _BASE), Stage(WRITING, _bytes(quant)))


def _proof(plan: ExportPlan, *, is_first: bool) -> Iterator[Stage]:
    """The comparison with the trained model, which is measured before the first one."""
    if plan.unverified is not None:
        return
    trained, rows = plan.trained, plan.request.rows
    if is_first:
        is_quantized = trained.config.method.name == "qlora" and plan.request.kind != "adapter" and trained.file is None
        yield from (Stage(LOADING_TRAINED, _BASE), Stage(MEASURING_TRAINED, _MEASURED * rows))
        if trained.adapter is not None:
            yield Stage(MEASURING_BASE, _MEASURED * rows)
        yield Stage(ANSWERING, _ANSWERED * rows)
        if trained.adapter is not None and is_quantized:
            yield from (Stage(LOADING_PLAIN, _BASE), Stage(MEASURING_PLAIN, _MEASURED * rows))
    yield from (Stage(LOADING_FILE, _BASE), Stage(MEASURING_FILE, _READ * rows))


def _bytes(quant: Quant | None) -> float:
    """Bytes of a parameter in a type of weights; next to none for an adapter."""
    return MEAN_BITS[quant] / 8 if quant is not None else 0.1
