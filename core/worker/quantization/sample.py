"""Sample of rows for the measurement: held-out ones where possible, read as by the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.schema import Config
from core.directories import Progress
from core.errors import UserError
from core.memory.batching import padded_length
from core.quantization.result import Data
from core.template.builtin import template_source
from core.worker.data.batches import supervised_count
from core.worker.data.encode import TokenizedRow
from core.worker.model.support import row_loader

#: Training rows to read where nothing is held out.
_TRAINING = 1000


@dataclass(frozen=True)
class Sample:
    """Measured rows, each one sequence; at least one."""

    rows: list[TokenizedRow]
    data: Data


def read_sample(config: Config, base: Path, tokenizer: Any, count: int, budget: int, progress: Progress) -> Sample:
    """Read, render and tokenize rows, and choose a sample.

    Args:
        config: The configuration.
        base: Directory of the model.
        tokenizer: Its tokenizer.
        count: Largest number of rows.
        budget: Largest number of tokens of all rows together, padding included.
        progress: Called with the number of rows read; may raise to cancel.

    Raises:
        UserError: If the files cannot be read, or contain no usable row.
    """
    template = template_source(config.template.file, config.template.name)
    loader = row_loader(config, base, tokenizer, template, progress)
    data: Data = "training"
    if config.data.eval is not None:
        data, rows = "eval", loader.load(config.data.eval, limit=config.eval.max_rows).rows
    elif config.data.eval_share:
        dataset, held_out = loader.training()
        data, rows = ("held_out", held_out.rows) if held_out is not None else ("training", dataset.rows)
    else:
        rows = loader.load(config.data.train, limit=_TRAINING).rows
    return choose_sample(rows, count, budget, data)


def choose_sample(rows: Sequence[TokenizedRow], count: int, budget: int, data: Data) -> Sample:
    """Evenly spaced rows that fit a token budget as one padded batch; deterministic.

    Args:
        rows: The rows to choose from.
        count: Largest number of rows.
        budget: Tokens, padding included. A row that exceeds it alone is cut.
        data: Source of the rows.

    Raises:
        UserError: If no row has a supervised token.
    """
    spread = [rows[place * len(rows) // count] for place in range(count)] if len(rows) > count else rows
    chosen: list[TokenizedRow] = []
    width = 0
    for row in spread:
        cut = TokenizedRow(row.input_ids[:budget], row.supervised[:budget])
        wider = max(width, padded_length(len(cut)))
        if not supervised_count(cut) or (chosen and wider * (len(chosen) + 1) > budget):
            continue
        chosen.append(cut)
        width = wider
    if not chosen:
        raise UserError(
            f"Nothing is learned in the first {budget:,} tokens of the rows that would be measured.",
            "Take shorter rows for data.eval.",
        )
    return Sample(chosen, data)
