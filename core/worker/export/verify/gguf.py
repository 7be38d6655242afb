"""Reading of a GGUF file by llama.cpp for the verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from core.directories import Progress
from core.export.stages import LOADING_FILE
from core.worker.export.llama.engine import GgufTemplate
from core.worker.export.llama.model import GgufModel
from core.worker.export.verify.compare import compare
from core.worker.export.verify.store import Proof, ProofRow


class GgufReader:
    """A GGUF file in llama.cpp; prompts are rendered from the template in its metadata.

    Args:
        path: The file.
        adapter: A GGUF file with an adapter to put on top; None for none.
        now: The date for templates.
        progress: Called with the share loaded; it may raise to cancel.
    """

    def __init__(self, path: Path, adapter: Path | None, now: datetime | None, progress: Progress) -> None:
        self._model = GgufModel(
            path, adapter, exact=True, progress=lambda share: progress(LOADING_FILE, int(share * 100), 100)
        )
        self._now = now
        self._template: GgufTemplate | None = None
        self.name = self._model.library.version

    def prompt_ids(self, row: ProofRow) -> list[int]:
        """Tokens of a row's prompt, as in llama.cpp's server."""
        if not row.messages:
            return self._model.tokenize(row.text, add_special=False)
        if self._template is None:
            self._template = GgufTemplate(self._model, self._now)
        return self._model.prompt_ids(self._template.render(row.messages, row.tools))

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Logits after the tokens at some positions."""
        return self._model.logits(tokens, positions)


def compare_gguf(proof: Proof, path: Path, adapter: Path | None, progress: Progress) -> dict[str, Any]:
    """Compare a GGUF file with the measured answers, see :func:`core.worker.export.verify.compare.compare`.

    Args:
        proof: The measured answers.
        path: The file; for an exported adapter, the base's.
        adapter: The adapter's file.
        progress: Called with each stage; it may raise to cancel.

    Raises:
        UserError: If the file cannot be read or its logits are not finite.
    """
    now = datetime.fromisoformat(proof.now) if proof.now else None
    reader = GgufReader(path, adapter, now, progress)
    return compare(proof, reader, progress).to_dict(proof, reader.name)
