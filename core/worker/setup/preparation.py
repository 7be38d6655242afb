"""Preparation of a run before its model is loaded: base, tokenizer, template and rows, with the preflight checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from core.analysis.preflight import Preflight
from core.analysis.problems import COLUMNS_NOT_READ, kind_of
from core.analysis.result import request_for
from core.analysis.row_samples import try_first_rows
from core.atomic import write_atomic
from core.config.choices import allowed_codes
from core.config.schema import Config, VariableValue
from core.data.exclusion import EXCLUDED
from core.data.formats.detect import describe_columns
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.sandbox.pool import POOL
from core.template.builtin import template_source
from core.template.render import one_template, with_variables
from core.template.settings import mask_settings
from core.text import one_line
from core.worker.data.batches import fingerprint
from core.worker.data.dataset import HELD_OUT, NOT_SAMPLED, Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow, stop_token_ids
from core.worker.evaluate.evaluate import encode_probe
from core.worker.evaluate.samples import Questions, choose_questions
from core.worker.model.model import load_tokenizer
from core.worker.model.support import load_generation_config, vocabulary_size
from core.worker.process.recorder import Recorder

#: Formats that no template renders.
UNRENDERED = ("text", "tokens")
#: Seconds between two checks for a stop while rows are tried in the sandbox.
_SECONDS_PER_CHECK = 0.2
#: Template of a model without one, if allowed: it works with every tokenizer.
FALLBACK_TEMPLATE = "alpaca"


@dataclass(frozen=True)
class Prepared:
    """Inputs of a run, except the model's weights."""

    base: Path
    """Directory of the base model."""
    tokenizer: Any
    """The model's transformers tokenizer."""
    template: str | None
    """Chat template, if not the tokenizer's own."""
    dataset: Dataset
    held_out: Dataset | None
    data_fingerprint: str
    """SHA-256 of the training rows."""
    held_out_fingerprint: str
    """SHA-256 of the held-out rows; empty if there are none."""
    probe: list[TokenizedRow]
    """Rows of the general probe; empty if it is off."""
    questions: Questions
    """The questions of each evaluation."""


def prepare(
    config: Config,
    base: Path,
    recorder: Recorder,
    check_stop: Callable[[], None],
    now: datetime | None,
    *,
    is_resumed: bool = False,
) -> Prepared:
    """Read and tokenize the rows, and refuse anything that would waste the run.

    Args:
        config: The configuration, paths absolute.
        base: Directory of the base model.
        recorder: Receives progress, dropped rows and problems that are allowed.
        check_stop: Called often; may raise to stop.
        now: Date for templates that insert one. A resumed run keeps its first date, so its rows stay the same. None for
            today.
        is_resumed: Whether the rows have been trained on.

    Raises:
        UserError: If the rows cannot be used or would waste the run.
    """
    recorder.phase("preparing_data")
    tokenizer = load_tokenizer(base)
    preflight = Preflight(
        allowed_codes(config.data.allow), lambda code, message, hint: recorder.notice("warning", code, message, hint)
    )
    template = template_source(config.template.file, config.template.name)
    if template is None and not tokenizer.chat_template and _has_conversations(config):
        preflight.check_template(config.model.base)
        template = template_source(None, FALLBACK_TEMPLATE)
    if config.template.variables:
        template = _with_variables(tokenizer, template, config.template.variables)
        # Needed to chat with a checkpoint; a finished run has the template beside its result.
        write_atomic(recorder.run.template_path, template)
    _try_template(config, base, template, check_stop)
    stops = stop_token_ids(load_generation_config(base), tokenizer, template, check_stop)
    settings = mask_settings(config, str(base))
    encoder = Encoder(tokenizer, stops, template, settings=settings, now=now, check=check_stop)

    def progress(rows: int) -> None:
        check_stop()
        recorder.phase("preparing_data", done=rows)

    vocabulary = vocabulary_size(base)
    loader = Loader(config, encoder, vocabulary=vocabulary, progress=progress, preflight=preflight, asks=not is_resumed)
    dataset, held_out = loader.training()
    _check_tokens(dataset, base, vocabulary)
    recorder.event(dataset.event(held_out))
    _tell_dropped(dataset, recorder)
    _tell_unread(dataset, recorder)
    measured = fingerprint(held_out.rows) if held_out is not None else ""
    probe: list[TokenizedRow] = []
    if config.eval.probe and held_out is not None:
        # Only answers count, whatever the run supervises, so that probe losses of all runs are comparable.
        answers = dataclasses.replace(settings, supervise="assistant")
        probe = encode_probe(Encoder(tokenizer, stops, template, settings=answers, now=now, check=check_stop))
    questions = choose_questions(config, held_out)
    trained = fingerprint(dataset.rows, dataset.excluded)
    return Prepared(base, tokenizer, template, dataset, held_out, trained, measured, probe, questions)


def _try_template(config: Config, base: Path, template: str | None, check_stop: Callable[[], None]) -> None:
    """Render a few rows in the sandbox. The kernel ends a template that never returns to Python there; in this process
    it would hang the run.

    Raises:
        UserError: If it exceeds the limits on time or memory.
    """
    request = request_for(config, model=str(base), template=template)
    with ThreadPoolExecutor(1, "sandbox") as thread:
        trial = thread.submit(try_first_rows, request)
        try:
            while not wait([trial], _SECONDS_PER_CHECK).done:
                check_stop()
        finally:
            # Closing the pool ends an unfinished trial; a trial that is just starting has no process to end yet.
            POOL.close()
            while not wait([trial], _SECONDS_PER_CHECK).done:
                POOL.close()
    trial.result()


def _with_variables(tokenizer: Any, template: str | None, variables: Mapping[str, VariableValue]) -> str:
    """The given chat template, else the model's own, with values for its variables.

    Raises:
        UserError: If there is no template, or it does not use one of the variables.
    """
    if template is None:
        own = tokenizer.chat_template
        named = own if isinstance(own, dict) else {"default": own}
        template = one_template(named.get("default"), named.get("tool_use"))
    if template is None:
        raise UserError(
            "template.variables is set, and the model has no chat template.",
            "Name a template in template.file, or remove the variables.",
        )
    return with_variables(template, variables)


def _has_conversations(config: Config) -> bool:
    """True if any source has rows that a chat template renders."""
    data = config.data
    for references in (data.train, data.eval):
        for source in flat_sources(references, data.format, data.columns):
            with source.open() as file:
                if source.recognize(file).format not in UNRENDERED:
                    return True
    return False


def _check_tokens(dataset: Dataset, base: Path, vocabulary: int) -> None:
    highest = max(int(sequence.input_ids.max()) for row in dataset.rows for sequence in row.sequences)
    if highest >= vocabulary:
        raise UserError(
            f"The tokenizer in {base} makes the token {highest}; the model knows those below {vocabulary}.",
            "Take the tokenizer that belongs to the model.",
        )


def _tell_dropped(dataset: Dataset, recorder: Recorder) -> None:
    for code, count in dataset.dropped.most_common():
        if code in (HELD_OUT, NOT_SAMPLED, EXCLUDED):
            continue
        unused = "1 row is not used." if count == 1 else f"{count} rows are not used."
        recorder.notice("warning", f"dropped_{code}", f"{unused} {dataset.first_dropped[code]}", kind_of(code).hint)


def _tell_unread(dataset: Dataset, recorder: Recorder) -> None:
    for name, counts in dataset.unread.items():
        if counts:
            message = f"{one_line(name)}: columns not read: {describe_columns(counts)}."
            recorder.notice("info", COLUMNS_NOT_READ, message, kind_of(COLUMNS_NOT_READ).hint)
