"""Losses of training rows one by one, and the model's own answers to the worst, as a job."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import torch

from core.attribution.row_losses import DataFile, Twin, WorstRow
from core.config.schema import Config
from core.data.conversation import Example
from core.data.registries.resolve import hash_data_files
from core.directories import Progress
from core.errors import UserError
from core.jobs.process import Answers
from core.memory.batching import TOKEN_BUDGETS
from core.runs.catalog.trained import TrainedFile
from core.template.builtin import named_or_file
from core.template.settings import mask_settings
from core.worker.data.batches import fingerprint, make_micro_batch, row_bytes, supervised_count
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow, stop_token_ids
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
from core.worker.model.support import load_generation_config, resolve_base, vocabulary_size
from core.worker.oom.retry import MemoryShortageError, NoGradBatches
from core.worker.process import environment
from core.worker.process.openmp import SpinControl

#: Rows whose forward pass takes about as long as an answer, for the progress.
_ROWS_PER_ANSWER = 8


def measure(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Measure the loss of each training row of a run, and answer the worst ones.

    Args:
        job: ``config`` of the run; ``model``, a :class:`~core.chat.engine.ModelSpec`; ``created``, the run's date in
            ISO format or null; ``data_sha256``, the recorded fingerprint of its rows or null; ``worst``, the number of
            rows to answer.
        answers: Receives the progress.

    Returns:
        The fields of :class:`~core.attribution.row_losses.RowLosses`, without ``run`` and ``step``.
    """
    config, spec = Config.model_validate(job["config"]), job["model"]
    if config.hardware.device != "cpu":
        environment.choose_gpu(config.hardware.gpu)
    SpinControl().start()
    # Before the rows are read: a file that changes meanwhile no longer has this hash.
    files = [_stamped(path, sha256) for path, sha256 in _hashes(config).items()]
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
    learned = _distinct(dataset)
    count = min(int(job["worst"]), len(learned))
    total = len(learned) + _ROWS_PER_ANSWER * count

    def report(activity: str, done: int) -> None:
        answers.progress(activity, min(done, total), total)

    measured = _measure_rows(loaded, dataset, learned, lambda done: report("measuring the rows", done))
    worst = heapq.nlargest(count, measured, key=lambda row: row.loss)
    own, notes = _answer(
        loaded,
        config,
        template,
        worst,
        lambda done: report("answering the worst rows", len(learned) + _ROWS_PER_ANSWER * done),
    )
    twins = _find_twins(measured, worst)
    return {
        "rows_sha256": rows_sha256,
        "files": [asdict(file) for file in files],
        "rows": _by_file(measured),
        "worst": [asdict(row.described(answer, twins[row.number])) for row, answer in zip(worst, own, strict=True)],
        "notes": notes,
    }


@dataclass(frozen=True)
class _Measured:
    """A row of the data, which may be learned as several rows."""

    number: int
    file: str
    line: int
    example: Example
    loss: float
    tokens: int

    def described(self, own: str | None, twins: Sequence[Twin]) -> WorstRow:
        """The row with its texts."""
        example = self.example
        question = example.prompt[-1].content if example.prompt else ""
        return WorstRow(
            *(self.file, self.line, self.loss, self.tokens),
            question=question,
            answer=example.answer or example.text,
            own=own,
            twins=tuple(twins),
        )


def _hashes(config: Config) -> dict[str, str]:
    return hash_data_files(config.data.model_copy(update={"eval": None}))


def _stamped(path: str, sha256: str) -> DataFile:
    size = mtime = 0
    with contextlib.suppress(OSError):  # reading the rows reports it
        status = os.stat(path)
        size, mtime = status.st_size, status.st_mtime_ns
    return DataFile(path, sha256, size, mtime)


def _read_rows(config: Config, template: str | None, now: datetime | None, progress: Progress) -> Dataset:
    """The training rows, as the run has read them."""
    base = resolve_base(config.model.base, progress)
    tokenizer = load_tokenizer(base)
    stops = stop_token_ids(load_generation_config(base), tokenizer, template)
    encoder = Encoder(tokenizer, stops, template, settings=mask_settings(config, str(base)), now=now)
    loader = Loader(
        config,
        encoder,
        vocabulary=vocabulary_size(base),
        progress=lambda read: progress("reading the rows", read, None),
    )
    return loader.training()[0]


def _load(spec: dict[str, Any], progress: Progress) -> LoadedModel:
    """The trained model, computing as in training."""
    base = resolve_base(spec["base"], progress)
    loaded, _ = load_trained(base, spec, lambda detail: progress(detail, None, None))
    if spec["adapter"] and (file := spec["file"]):
        answer_with_file(loaded, base, TrainedFile(file["type"], file["dtype"]))
    # The inference kernel of 4-bit layers on a CPU rounds otherwise.
    keep_gradients(loaded.model)
    return loaded


def _distinct(dataset: Dataset) -> list[int]:
    """Places of the rows that are trained on, without repetitions for ``data.weights``."""
    first: dict[tuple[int, bytes], int] = {}
    for at, row in dataset.trained():
        first.setdefault((id(dataset.examples[at]), row_bytes(row)), at)
    return list(first.values())


@torch.no_grad()
def _measure_rows(
    loaded: LoadedModel, dataset: Dataset, learned: Sequence[int], progress: Callable[[int], None]
) -> list[_Measured]:
    """The loss of each example, over the tokens of all rows that are learned of it.

    Args:
        loaded: The model.
        dataset: The rows.
        learned: Places of the rows to measure.
        progress: Called with the number of rows done.
    """
    rows = [dataset.rows[at] for at in learned]
    loss, autocast = SupervisedLoss(loaded.model), make_accelerator(loaded).autocast
    batches = NoGradBatches(
        TOKEN_BUDGETS[loaded.device.type],
        lambda _rows, _now: None,
        lambda row: (
            f"Memory ran out with a single row of {len(rows[row])} tokens ({dataset.place(learned[row])})",
            "Close other programs, or lower train.max_length.",
        ),
    )

    def summed(batch: list[int]) -> list[float]:
        return _summed(loaded, loss, [rows[row] for row in batch], batch, autocast)

    sums: dict[int, float] = defaultdict(float)
    tokens: dict[int, int] = defaultdict(int)
    done = 0
    with evaluation_mode(loaded.model):
        for batch, losses in batches.run(list(map(len, rows)), summed):
            for row, found in zip(batch, losses, strict=True):
                example = id(dataset.examples[learned[row]])
                sums[example] += found
                tokens[example] += supervised_count(rows[row])
            done += len(batch)
            progress(done)
    examples: dict[int, int] = {}
    for at in learned:
        examples.setdefault(id(dataset.examples[at]), at)
    measured = [
        _Measured(at, *dataset.places[at], dataset.examples[at], round(sums[key] / tokens[key], 6), tokens[key])
        for key, at in examples.items()
    ]
    if not all(abs(row.loss) < float("inf") for row in measured):
        raise UserError("The model's losses are not finite: its weights are broken.", "Take an earlier checkpoint.")
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
    asked = [row for row in worst if row.example.messages and not row.example.tools]
    if not asked:
        return [None] * len(worst), []
    conversations = [[message.fields() for message in row.example.prompt] for row in asked]
    most = min(config.chat.max_new_tokens, max(row.tokens for row in asked) + ANSWER_MARGIN_TOKENS)
    allow_fast_kernels(loaded.model)
    try:
        with make_accelerator(loaded).autocast():
            texts = generate_batch(
                loaded.model,
                loaded.tokenizer,
                conversations,
                most,
                lambda done, _: progress(done),
                template=template,
            )
    except MemoryShortageError as error:
        return [None] * len(worst), [f"The model's own answers are left out. {error}"]
    own = {row.number: text for row, text in zip(asked, texts, strict=True)}
    return [own.get(row.number) for row in worst], []


def _find_twins(measured: Sequence[_Measured], worst: Sequence[_Measured]) -> dict[int, list[Twin]]:
    """Rows with the same conversation before the answer, by the number of each of the worst rows."""
    alike: dict[tuple[tuple[str, str], ...], list[_Measured]] = defaultdict(list)
    wanted = {_asked(row.example) for row in worst} - {()}
    for row in measured:
        if (asked := _asked(row.example)) in wanted:
            alike[asked].append(row)
    return {
        row.number: [
            Twin(other.file, other.line, other.example.answer)
            for other in alike.get(_asked(row.example), ())
            if other is not row
        ]
        for row in worst
    }


def _asked(example: Example) -> tuple[tuple[str, str], ...]:
    """The turns before the answer, regardless of case and whitespace."""
    return tuple((turn.role, " ".join(turn.content.casefold().split())) for turn in example.prompt)


def _by_file(measured: Sequence[_Measured]) -> dict[str, list[tuple[int, float, int]]]:
    found: dict[str, list[tuple[int, float, int]]] = {}
    for row in measured:
        found.setdefault(row.file, []).append((row.line, row.loss, row.tokens))
    return found
