"""Training rows at an export: what tells a quantizer which weights matter most, and proves a template carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.directories import Progress
from core.errors import UserError
from core.runs.catalog.trained import TrainedModel
from core.template.settings import mask_settings
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder
from core.worker.export.beside import Conversation
from core.worker.model.model import load_tokenizer

#: Most rows that are read; with more of them than tokens are asked for, further ones add nothing.
_MOST_ROWS = 1000


def read_rows(base: Path, trained: TrainedModel, conversation: Conversation, progress: Progress) -> Dataset:
    """Training rows; none where the files cannot be read any more.

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
    loader = Loader(config, encoder, progress=lambda count: progress("reading training rows", count, None))
    try:
        return loader.load(config.data.train, limit=_MOST_ROWS)
    except UserError:
        return Dataset()


def conversations(dataset: Dataset) -> list[list[dict[str, Any]]]:
    """The conversations among the rows, as a chat template has them."""
    return [[message.fields() for message in example.messages] for example in dataset.examples if example.messages]
