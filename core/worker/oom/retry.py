"""Out-of-memory errors: detection, release of the memory they hold, retries, and batches that shrink."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from core.errors import UserError
from core.memory.batching import padded_length
from core.text import one_line
from core.worker.data.batches import split_window
from core.worker.process.log import log

T = TypeVar("T")

#: Number of attempts before work is considered not to fit.
TRIES = 3
#: Maximum length of a quoted error line.
REASON_LENGTH = 200
#: Messages of libraries besides torch's own class: of the driver, of handles and workspaces of NVIDIA's libraries
#: outside torch's allocator, of Triton, and of host mappings. A handle that cannot be created gives no reason; if
#: memory is not the cause, the attempts fail and the message is shown.
_SHORTAGE = re.compile(
    r"CUDA (driver )?error: out of memory"
    r"|Triton Error \[CUDA\]: out of memory"
    r"|CU[A-Z]+_STATUS_ALLOC_FAILED"
    r"|CU[A-Z]+_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)\b.*\bcu[a-zA-Z]+Create"
    r"|Cannot allocate memory"
)
#: numpy's error for the null pointer that bitsandbytes gets instead of managed memory.
_NO_MANAGED_MEMORY = "NULL pointer access"


class MemoryShortageError(UserError):
    """Not enough memory for a step, an answer or a file, however it is cut."""


class TornUpdateError(MemoryShortageError):
    """Memory ran out after some weights of a step were updated, so the step cannot run again."""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """Result of an attempt, or the reason why memory ran out."""

    result: T | None
    reason: str | None

    @property
    def failed(self) -> bool:
        """True if memory ran out."""
        return self.reason is not None


def ignore(*_: str) -> None:
    """Ignore a notice."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory ran out, on the device or on the host.

    Torch has its own class for device allocators; its CPU allocator and some libraries only have messages.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, ValueError):
        return str(error) == _NO_MANAGED_MEMORY
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or _SHORTAGE.search(str(error)) is not None
    )


def attempt(work: Callable[[], T]) -> Attempt[T]:
    """Run work and catch running out of memory; all other errors propagate.

    On return the error is gone, along with the tensors its traceback held alive, and the allocator's cache is released.
    """
    try:
        return Attempt(work(), None)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = shortage_reason(error)
        log(f"out of memory: {error}")
    release()
    return Attempt(None, reason)


@contextlib.contextmanager
def shortage_explained(what: str, hint: str) -> Iterator[None]:
    """Turn running out of memory into a user error, for work that cannot be restarted.

    Args:
        what: For the message: ``in attaching the adapters``.
        hint: Advice for the user.

    Raises:
        MemoryShortageError: Instead of an out-of-memory error; all other errors propagate.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log(f"out of memory: {error}")
        raise MemoryShortageError(f"Memory ran out {what}: {shortage_reason(error)}", hint) from error


def shortage_reason(error: Exception) -> str:
    """First line of an error, shortened for a message."""
    return one_line((str(error).splitlines() or [type(error).__name__])[0], REASON_LENGTH)


def release() -> None:
    """Release unused memory: tensors in reference cycles, and the allocator's cached blocks."""
    gc.collect()
    give_back()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Retry:
    """Retries restartable work that ran out of memory.

    Args:
        where: Names the place, for messages: ``step 12``.
        notice: Called before each retry: ``notice(code, message, hint)``.
    """

    where: Callable[[], str] = lambda: "a step"
    notice: Callable[[str, str, str], None] = ignore

    def run(self, work: Callable[[], T], what: str, hint: str, undo: Callable[[], object] = lambda: None) -> T:
        """Run work until it succeeds.

        Args:
            work: The work.
            what: For messages: ``in the optimizer``.
            hint: Advice if all attempts fail.
            undo: Reverts a failed attempt.

        Raises:
            MemoryShortageError: If memory runs out at every attempt; the last one is reverted too.
        """
        for number in range(1, TRIES + 1):
            tried = attempt(work)
            if not tried.failed:
                return tried.result  # type: ignore[return-value]
            undo()
            if number < TRIES:
                message = f"Memory ran out at {self.where()} {what}: trying again, with the cache freed."
                self.notice("memory_again", message, "It is done once, and the result is the same.")
        raise MemoryShortageError(f"Memory ran out at {self.where()} {what}, {TRIES} times in a row.", hint)


def create_handles(device: torch.device) -> None:
    """Create the cuBLAS handles of both threads that multiply. Their memory is outside torch's allocator, and each
    thread allocates its own at its first product: autograd's in the first backward pass, when cached memory may fill
    the card.

    Args:
        device: Device of the run; a CPU has none.
    """
    if device.type == "cuda":
        multiply_both_ways(device)


def multiply_both_ways(device: torch.device) -> None:
    """Compute a small product, forward and backward."""
    square = torch.ones(16, 16, device=device, requires_grad=True)
    (square @ square).sum().backward()  # type: ignore[no-untyped-call]


#: Parameters of glibc's ``mallopt``, numbered as in its header.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
#: Maximum size of tensors allocated on the heap, where they are reused.
_LARGEST_IN_HEAP = 1 << 30
_MOST_FREE = (1 << 31) - 1
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next tensor of a step.

    By default glibc returns large blocks to the system at once, and gets them back as zeroed pages. On a CPU, where
    the tensors of a layer are small, zeroing takes longer than many operations on them. Memory that is free already is
    returned first.

    Returns:
        True if this is possible, which it is with glibc.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    give_back()
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_M_TRIM_THRESHOLD, _MOST_FREE), (_M_TOP_PAD, _GROWTH))
    return {libc.mallopt(name, value) for name, value in wanted} == {1}


def give_back() -> None:
    """Return the free memory of the heap to the system, with glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@dataclass
class NoGradBatches:
    """Cuts rows into batches by a token budget.

    Args:
        token_budget: Token budget of a batch, padding included; halved for good when memory runs out.
        on_cut: Called after each cut: ``on_cut(rows, now)``, with the old and new number of rows at once.
        refusal: Gives message and hint for a single row that does not fit: ``refusal(row)``. The reason is appended.
        sequences_per_row: Sequences per row.
    """

    token_budget: int
    on_cut: Callable[[int, int], None]
    refusal: Callable[[int], tuple[str, str]]
    sequences_per_row: int = 1

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
                self.token_budget = max(1, len(batch) * width * self.sequences_per_row // 2)
                waiting = self._split([row for rows in waiting for row in rows], lengths)
                self.on_cut(len(batch), len(waiting[0]))
            elif tried_alone:
                message, hint = self.refusal(batch[0])
                raise MemoryShortageError(f"{message}: {tried.reason}", hint)
            else:
                tried_alone = True  # try once more, after cached memory was released

    def _split(self, rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        return split_window(rows, lengths, max(1, self.token_budget // self.sequences_per_row))
