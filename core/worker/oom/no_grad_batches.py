"""Batches without gradients that shrink when memory runs out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from core.memory.batching import padded_length
from core.worker.data.batches import split_window
from core.worker.oom.retry import MemoryShortageError, attempt

T = TypeVar("T")


class NoGradBatches:
    """Cuts rows into batches by a token budget.

    Args:
        token_budget: Token budget of a batch, padding included; halved for good when memory runs out.
        on_cut: Called after each cut: ``on_cut(rows, now)``, with the old and new number of rows at once.
        refusal: Gives message and hint for a single row that does not fit: ``refusal(row)``. The reason is appended.
        sequences_per_row: Sequences per row.
    """

    def __init__(
        self,
        token_budget: int,
        on_cut: Callable[[int, int], None],
        refusal: Callable[[int], tuple[str, str]],
        *,
        sequences_per_row: int = 1,
    ) -> None:
        self.token_budget = token_budget
        self._on_cut = on_cut
        self._refusal = refusal
        self._sequences = sequences_per_row

    def run(self, lengths: Sequence[int], work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Run all rows.

        Args:
            lengths: Length in tokens of each row's longest sequence.
            work: Called with the row indices of each batch; restarted if memory runs out.

        Yields:
            Each batch with the result of ``work``.

        Raises:
            MemoryShortageError: If a single row does not fit twice.
        """
        waiting = self._split(range(len(lengths)), lengths)
        tried_alone = False
        while waiting:
            batch = waiting[0]
            tried = attempt(functools.partial(work, batch))
            if tried.result is not None:
                tried_alone = False
                waiting = waiting[1:]
                yield batch, tried.result
            elif len(batch) > 1:
                width = padded_length(max(lengths[row] for row in batch))
                self.token_budget = max(1, len(batch) * width * self._sequences // 2)
                waiting = self._split([row for rows in waiting for row in rows], lengths)
                self._on_cut(len(batch), len(waiting[0]))
            elif tried_alone:
                message, hint = self._refusal(batch[0])
                raise MemoryShortageError(f"{message}: {tried.reason}", hint)
            else:
                tried_alone = True  # try once more, after cached memory was released

    def _split(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        return split_window(rows, lengths, max(1, self.token_budget // self._sequences))
