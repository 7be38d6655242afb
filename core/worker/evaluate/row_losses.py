"""Losses of training rows one by one, and the model's own answers to the worst, as a job."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import torch

from core.analysis.problems import name_places
from core.config.schema import Config
from core.data.conversation import Example
from core.data.registries.resolve import hash_data_files
from core.directories import Progress
from core.errors import UserError
from core.evaluation.row_losses import DataFile, Twin, WorstRow
from core.jobs.process import Answers
from core.memory.batching import TOKEN_BUDGETS
from core.runs.catalog.trained import TrainedFile
from core.template.builtin import named_or_file
from core.worker.data.batches import fingerprint, make_micro_batch, supervised_count
from core.worker.data.dataset import Dataset, TrainedExample
from core.worker.data.encode import TokenizedRow
from core.worker.evaluate.samples import ANSWER_MARGIN_TOKENS
from core.worker.generate.chat_engine import allow_fast_kernels, load_trained
from core.worker.generate.generate import generate_batch
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import (
    LoadedModel,
    answer_with_file,
    evaluation_mode,
    keep_gradients,
    load_tokenizer,
    make_accelerator,
)
from core.worker.model.support import resolve_base, row_loader
from core.worker.oom.retry import MemoryShortageError, NoGradBatches
from core.worker.process import environment
from core.worker.process.openmp import SpinControl

#: Rows whose forward pass takes about as long as an answer, for the progress.
_ROWS_PER_ANSWER = 8
#: Rows of one question that are told as twins: thousands may have it.
_MOST_ALIKE = 8


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Measure the loss of each training row of a run, and answer the worst ones.

    Args:
        job: ``config`` of the run; ``model``, a :class:`~core.chat.engine.ModelSpec`; ``created``, the run's date in
            ISO format or null; ``data_sha256``, the recorded fingerprint of its rows or null; ``worst``, the number of
            rows to answer.
        answers: Receives the progress.

    Returns:
        The fields of :class:`~core.evaluation.row_losses.RowLosses`, without ``run`` and ``step``.
    """
    config, spec = Config.model_validate(job["config"]), job["model"]
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    SpinControl().start()
    # Before the rows are read: a file that changes meanwhile no longer has this hash.
    hashes = hash_data_files(config.data.model_copy(update={"eval": None}))
    files = [_stamped(path, sha256) for path, sha256 in hashes.items()]
    template = named_or_file(spec["template"])
    created = None if job["created"] is None else datetime.fromisoformat(job["created"])
    dataset = _read_rows(config, template, created, answers.progress)
    rows_sha256 = fingerprint(dataset.rows, dataset.excluded)
    if job["data_sha256"] not in (None, rows_sha256):
        raise UserError(
            "The rows are not those that the run was trained on: a data file or the chat template has changed since.",
            "Put the files back as they were, or measure a run that was trained on the present ones.",
        )
    loaded = _load(spec, answers.progress)
    examples = dataset.trained_examples()
    rows = sum(len(example.rows) for example in examples)
    count = min(int(job["worst"]), len(examples))
    total = rows + _ROWS_PER_ANSWER * count

    def report(activity: str, done: int) -> None:
        answers.progress(activity, min(done, total), total)

    measured = _measure_rows(loaded, examples, lambda done: report("measuring the rows", done))
    worst = heapq.nlargest(count, measured, key=lambda row: row.loss)
    own, notes = _answer(
        loaded, config, template, worst, lambda done: report("answering the worst rows", rows + _ROWS_PER_ANSWER * done)
    )
    return {
        "rows_sha256": rows_sha256,
        "files": [asdict(file) for file in files],
        "rows": _by_file(measured),
        "worst": [
            asdict(row.described(answer, twins))
            for row, answer, twins in zip(worst, own, _find_twins(measured, worst), strict=True)
        ],
        "notes": notes,
    }


@dataclass(frozen=True)
class _Measured:
    """A row of the data files with its loss."""

    source: TrainedExample
    loss: float
    tokens: int

    def described(self, own: str | None, twins: Sequence[Twin]) -> WorstRow:
        """The row with its texts."""
        example = self.source.example
        return WorstRow(
            *(*self.source.place, self.loss, self.tokens),
            question=example.prompt[-1].content if example.prompt else "",
            answer=example.answer or example.text,
            own=own,
            twins=tuple(twins),
        )


def _stamped(path: str, sha256: str) -> DataFile:
    size = mtime = 0
    with contextlib.suppress(OSError):  # reading the rows reports it
        status = os.stat(path)
        size, mtime = status.st_size, status.st_mtime_ns
    return DataFile(path, sha256, size, mtime)


def _read_rows(config: Config, template: str | None, now: datetime | None, progress: Progress) -> Dataset:
    """The training rows, as the run has read them."""
    base = resolve_base(config.model.base, progress)
    return row_loader(config, base, load_tokenizer(base), template, progress, now=now).training()[0]


def _load(spec: dict[str, Any], progress: Progress) -> LoadedModel:
    """The trained model, computing as in training."""
    base = resolve_base(spec["base"], progress)
    loaded, _ = load_trained(base, spec, lambda detail: progress(detail, None, None))
    if spec["adapter"] and (file := spec["file"]):
        answer_with_file(loaded, base, TrainedFile(file["type"], file["dtype"]))
    # The inference kernel of 4-bit layers on a CPU rounds otherwise.
    keep_gradients(loaded.model)
    return loaded


@torch.no_grad()
def _measure_rows(
    loaded: LoadedModel, examples: Sequence[TrainedExample], progress: Callable[[int], None]
) -> list[_Measured]:
    """The loss of each example, over the tokens of all its rows.

    Args:
        loaded: The model.
        examples: The examples.
        progress: Called with the number of rows done.
    """
    owners = [number for number, example in enumerate(examples) for _ in example.rows]
    rows = [row for example in examples for row in example.rows]
    loss, autocast = SupervisedLoss(loaded.model), make_accelerator(loaded).autocast
    batches = NoGradBatches(
        TOKEN_BUDGETS[loaded.device.type],
        lambda _rows, _now: None,
        lambda row: (
            f"Memory ran out with a row of {len(rows[row])} tokens ({name_places([examples[owners[row]].place])})",
            "Close other programs, or lower train.max_length.",
        ),
    )

    def summed(batch: list[int]) -> list[float]:
        return _summed(loaded, loss, [rows[row] for row in batch], batch, autocast)

    sums, done = [0.0] * len(examples), 0
    with evaluation_mode(loaded.model):
        for batch, losses in batches.run(list(map(len, rows)), summed):
            for row, found in zip(batch, losses, strict=True):
                sums[owners[row]] += found
            done += len(batch)
            progress(done)
    if not all(map(math.isfinite, sums)):
        raise UserError("The model's losses are not finite: its weights are broken.", "Take an earlier checkpoint.")
    measured = []
    for example, found in zip(examples, sums, strict=True):
        tokens = sum(map(supervised_count, example.rows))
        measured.append(_Measured(example, round(found / tokens, 6), tokens))
    return measured


def _summed(
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    places: Sequence[int],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> list[float]:
    """Loss of each row of a batch, summed over its supervised tokens."""
    batch = make_micro_batch(places, rows, loaded.pad_id, loaded.device)
    with autocast():
        hidden = loss.hidden(batch.input_ids, batch.supervised, host=batch.host)
        found = loss.row_log_probabilities(hidden, batch.input_ids, batch.supervised, host=batch.host)
    return [-value for value in found.tolist()]


def _answer(
    loaded: LoadedModel,
    config: Config,
    template: str | None,
    worst: Sequence[_Measured],
    progress: Callable[[int], None],
) -> tuple[list[str | None], list[str]]:
    """The model's own answers, None for rows that are not asked; and notes."""
    # Tools are not offered here, so an answer without them would be another model's.
    is_asked = [bool(row.source.example.messages and not row.source.example.tools) for row in worst]
    asked = list(itertools.compress(worst, is_asked))
    if not asked:
        return [None] * len(worst), []
    conversations = [[message.fields() for message in row.source.example.prompt] for row in asked]
    most = min(config.chat.max_new_tokens, max(row.tokens for row in asked) + ANSWER_MARGIN_TOKENS)
    allow_fast_kernels(loaded.model)
    try:
        with make_accelerator(loaded).autocast():
            texts = iter(
                generate_batch(
                    loaded.model,
                    loaded.tokenizer,
                    conversations,
                    most,
                    lambda done, _: progress(done),
                    template=template,
                )
            )
    except MemoryShortageError as error:
        return [None] * len(worst), [f"The model's own answers are left out. {error}"]
    return [next(texts) if is_so else None for is_so in is_asked], []


def _find_twins(measured: Sequence[_Measured], worst: Sequence[_Measured]) -> list[list[Twin]]:
    """The first rows with the same conversation before the answer, of each of the worst rows."""
    asked = [_asked(row.source.example) for row in worst]
    alike: dict[tuple[tuple[str, str], ...], list[_Measured]] = {key: [] for key in asked if key}
    for row in measured:
        found = alike.get(_asked(row.source.example))
        if found is not None and len(found) < _MOST_ALIKE:
            found.append(row)
    return [
        [Twin(*other.source.place, other.source.example.answer) for other in alike.get(key, ()) if other is not row]
        for key, row in zip(asked, worst, strict=True)
    ]


def _asked(example: Example) -> tuple[tuple[str, str], ...]:
    """The turns before the answer, regardless of case and whitespace."""
    return tuple((turn.role, " ".join(turn.content.casefold().split())) for turn in example.prompt)


def _by_file(measured: Sequence[_Measured]) -> dict[str, list[tuple[int, float, int]]]:
    found: dict[str, list[tuple[int, float, int]]] = {}
    for row in measured:
        file, line = row.source.place
        found.setdefault(file, []).append((line, row.loss, row.tokens))
    return found
