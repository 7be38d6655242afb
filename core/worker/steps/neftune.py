"""NEFTune: noise on the embeddings of the rows that are trained on (arXiv 2310.05914)."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch


class EmbeddingNoise:
    """Uniform noise of ``alpha / sqrt(tokens * hidden)`` on each row's embeddings, on its real tokens alone.

    It is there only inside of :meth:`on`: evaluation, sampling and chat go without. A row's noise depends on a number
    drawn for its window and on the row, so that it is the same however the window is cut, and again after a resume.

    Args:
        model: The model, whose input embeddings it is put on.
        alpha: How strong it is: 5 to 15 in the paper; None for no noise, and no random draw.
    """

    def __init__(self, model: Any, alpha: float | None) -> None:
        self._embeddings = model.get_input_embeddings()
        self._alpha = alpha
        self._seed = 0
        self._seen: Counter[int] = Counter()

    def draw(self) -> int:
        """Draw a window's number from torch's generator, which checkpoints keep."""
        return 0 if self._alpha is None else int(torch.randint(1 << 62, ()))

    def begin_window(self, number: int | None = None) -> None:
        """Begin a window.

        Args:
            number: As :meth:`draw` gives it, where several processes have the rows of the window; None: it is drawn.
        """
        self._seed = self.draw() if number is None else number
        self._seen.clear()

    @contextlib.contextmanager
    def on(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[None]:
        """Noise in the forward passes inside.

        Args:
            rows: What each row of the micro-batch is called; equal ones get noises of their own.
            lengths: Tokens of each, without padding.
        """
        if self._alpha is None:
            yield
            return
        alpha, seeds = self._alpha, list[int]()
        for row in rows:
            seeds.append(_mixed(self._seed, row, self._seen[row]))
            self._seen[row] += 1

        def add(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            noisy = output.clone()
            for place, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
                noisy[place, :length] += _noise(seed, length, alpha, output).to(output.dtype)
            return noisy

        handle = self._embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _noise(seed: int, length: int, alpha: float, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    hidden = like.shape[-1]
    noise = torch.empty(length, hidden, dtype=torch.float32, device=like.device)
    return noise.uniform_(-1.0, 1.0, generator=generator) * (alpha / math.sqrt(length * hidden))


def _mixed(window: int, row: int, repeat: int) -> int:
    """One seed of several numbers; hashed, as torch's generator on the CPU looks at the lowest 32 bits alone."""
    digest = hashlib.blake2b(f"{window}:{row}:{repeat}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=False) >> 1
