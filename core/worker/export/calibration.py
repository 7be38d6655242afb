"""Calibration rows: what the user trained on, as tokens, to tell a quantizer which weights matter most."""

from __future__ import annotations

from pathlib import Path

from core.directories import Progress
from core.errors import UserError
from core.export.gguf.write import CALIBRATION_ROW, CALIBRATION_TOKENS
from core.runs.trained import TrainedModel
from core.template.settings import mask_settings
from core.worker.data.dataset import Loader
from core.worker.data.encode import Encoder
from core.worker.export.beside import Conversation
from core.worker.model.model import load_tokenizer

#: Most rows that are read; with more of them than tokens are asked for, further ones add nothing.
_MOST_ROWS = 1000


def calibration_rows(
    base: Path, trained: TrainedModel, conversation: Conversation, progress: Progress
) -> tuple[tuple[int, ...], ...]:
    """Training rows as token ids; none where the files cannot be read any more, which costs quality only.

    Args:
        base: The directory with the tokenizer.
        trained: What was trained.
        conversation: How the model is talked to.
        progress: Told how many rows have been read.
    """
    config = trained.config
    template = None if conversation.is_own else conversation.template
    settings = mask_settings(config, str(base), template)
    encoder = Encoder(load_tokenizer(base), conversation.stop_ids, template, settings=settings)
    loader = Loader(config, encoder, progress=lambda count: progress("reading rows to calibrate with", count, None))
    try:
        dataset = loader.load(config.data.train, limit=_MOST_ROWS)
    except UserError:
        return ()
    found, tokens = [], 0
    for row in dataset.rows:
        if tokens >= CALIBRATION_TOKENS:
            break
        found.append(tuple(row.input_ids[:CALIBRATION_ROW].tolist()))
        tokens += len(found[-1])
    return tuple(found)
