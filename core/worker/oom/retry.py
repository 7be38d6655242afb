"""Out-of-memory errors: recognized, the memory that they hold alive released, the work retried where that is right."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from core.errors import UserError
from core.text import one_line
from core.worker.process.log import log
from core.worker.process.malloc import give_back

T = TypeVar("T")

#: How often the same work is tried before it is taken not to fit.
TRIES = 3
#: The longest part of an error's first line that is repeated.
REASON_LENGTH = 200
#: Sentences of libraries that say so besides torch's own class: those of the driver, the handles and workspaces of
#: NVIDIA's libraries, which are outside torch's allocator, Triton, and the host's mappings. A handle that cannot be
#: created tells of no reason; where memory is not it, the tries run out and the sentence is shown.
_SHORTAGE = re.compile(
    r"CUDA (driver )?error: out of memory"
    r"|Triton Error \[CUDA\]: out of memory"
    r"|CU[A-Z]+_STATUS_ALLOC_FAILED"
    r"|CU[A-Z]+_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)\b.*\bcu[a-zA-Z]+Create"
    r"|Cannot allocate memory",
)
#: From numpy, for the null pointer that bitsandbytes gets in place of managed memory.
_NO_MANAGED_MEMORY = "NULL pointer access"


class MemoryShortageError(UserError):
    """Memory that does not suffice for a step, an answer or a file, however it is cut."""


class TornUpdateError(MemoryShortageError):
    """Memory ran out when some of the weights of a step had been updated, so that it cannot be run again."""


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """The outcome of an attempt: a result, or why memory did not suffice."""

    result: T | None
    reason: str | None

    @property
    def failed(self) -> bool:
        """True if memory ran out."""
        return self.reason is not None


def ignore(*_: str) -> None:
    """Ignore a notice."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory ran out, on the device or on the host.

    Torch has a class of its own for its allocators on a device; that of the CPU and some libraries tell by a sentence.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, ValueError):
        return str(error) == _NO_MANAGED_MEMORY
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or _SHORTAGE.search(str(error)) is not None
    )


def attempt(work: Callable[[], T]) -> Attempt[T]:
    """Do something, and survive that memory runs out; every other error is passed on.

    When it returns, the error is gone, and with it the tensors that its traceback held alive, and what the allocator
    had cached is given back.
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
    """Turn running out of memory into a sentence, where the work inside cannot be begun again.

    Args:
        what: For the message: ``in attaching the adapters``.
        hint: What would help.

    Raises:
        MemoryShortageError: In place of what says so; every other error is passed on.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log(f"out of memory: {error}")
        raise MemoryShortageError(f"Memory ran out {what}: {shortage_reason(error)}", hint) from error


def shortage_reason(error: Exception) -> str:
    """The first line of an error, short enough for a message."""
    return one_line((str(error).splitlines() or [type(error).__name__])[0], REASON_LENGTH)


def release() -> None:
    """Give back what is held and not used: tensors in reference cycles, and the allocator's cached blocks."""
    gc.collect()
    give_back()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Retry:
    """Retries work that has run out of memory and can be begun again.

    Args:
        where: Names the place for messages: ``step 12``.
        notice: Told of each time: ``notice(code, message, hint)``.
    """

    where: Callable[[], str] = lambda: "a step"
    notice: Callable[[str, str, str], None] = ignore

    def run(self, work: Callable[[], T], undo: Callable[[], None], what: str, hint: str) -> T:
        """Do something until it is done.

        Args:
            work: What is done.
            undo: Puts back what a failed try has changed.
            what: For messages: ``in the optimizer``.
            hint: What would help when it fails to the last.

        Raises:
            MemoryShortageError: If memory runs out at every try; the last one is undone too.
        """
        for number in range(1, TRIES + 1):
            tried = attempt(work)
            if not tried.failed:
                return tried.result  # type: ignore[return-value]
            undo()
            if number < TRIES:
                message = f"Memory ran out at {self.where()} {what}: it is done again with what was cached given back."
                self.notice("memory_again", message, "It is done once, and the result is the same.")
        raise MemoryShortageError(f"Memory ran out at {self.where()} {what}, {TRIES} times in a row.", hint)


def create_handles(device: torch.device) -> None:
    """Create the cuBLAS handles of both threads that multiply, whose memory is outside torch's allocator. Each thread
    takes its own at its first product, autograd's in the first backward pass, when cached memory may fill the card.

    Args:
        device: Of the run; on a CPU there are none.
    """
    if device.type == "cuda":
        multiply_both_ways(device)


def multiply_both_ways(device: torch.device) -> None:
    """A small product, forward and backward."""
    square = torch.ones(16, 16, device=device, requires_grad=True)
    (square @ square).sum().backward()  # type: ignore[no-untyped-call]
