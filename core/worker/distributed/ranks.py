"""Ranks: the processes of a run and what they say to each other, over :mod:`torch.distributed`.

What is said is numbers and JSON, never a pickled object. A wait in the midst of common work has a limit: a process that
is lost, or a cable that is pulled, ends the others with :class:`RankLostError`, and whoever started them starts them
again. Where one process may do something alone for as long as it takes, such as writing a checkpoint, the others wait
without a limit, by a group of their own: there its signs of life count, which its supervisor hears, or the others
(:mod:`core.worker.distributed.heartbeats`).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from core.errors import UserError
from core.worker.distributed.rendezvous import Meeting, RankLostError
from core.worker.oom.retry import is_out_of_memory
from core.worker.process.pulse import Pulse

#: As good as no limit of a wait.
_UNLIMITED = timedelta(days=365)


@dataclass
class Ranks:
    """The processes of a run as one of them sees them.

    A run of one process has :meth:`single`, with which nothing below does anything or costs anything.

    Args:
        rank: The number of this process.
        count: How many there are.
        device: Where gradients are.
        patient: The group in which they wait for each other without a limit.
    """

    rank: int
    count: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None
    is_waiting: bool = field(default=False, init=False)
    """True if this process waits for the others right now; read by the thread that gives signs of life."""
    waits: int = field(default=0, init=False)
    """Number of waits so far, the present one included."""
    pulse: Pulse = field(default_factory=Pulse, init=False)
    """That of the training thread, in the first process."""
    members: list[dict[str, Any]] = field(default_factory=list, init=False)
    """Each process as :class:`core.runs.record.state.Rank`; empty in a run of one."""

    @classmethod
    def single(cls) -> Ranks:
        """The ranks of a run of one process."""
        return cls(0, 1)

    def signs(self) -> dict[str, Any]:
        """The fields of a sign of life: whether it waits, the number of that wait, and the pulse."""
        is_waiting = self.is_waiting
        return {"waiting": is_waiting, "wait": self.waits if is_waiting else 0, "pulse": self.pulse.count}

    @property
    def is_first(self) -> bool:
        """True if this is the one that writes the record, hears commands and decides."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """True if there is no other."""
        return self.count == 1

    def meet(self) -> None:
        """Wait until all have come here, whatever each has been doing, for as long as they live. Together; before
        common work, in which a wait is short.

        Raises:
            RankLostError: If one is gone.
        """
        self.any([False], patient=True)

    def limit_patience(self, seconds: float) -> None:
        """From now on this process waits for so long at most wherever it does."""
        if self.patient is not None:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), self.patient)

    def any(self, flags: Sequence[bool], *, patient: bool = False) -> list[bool]:
        """For each flag, whether any process has raised it.

        Args:
            flags: Those of this process.
            patient: Whether the others are waited for without a limit.

        Raises:
            RankLostError: If one does not answer.
        """
        if self.is_single:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        with self._waiting():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.patient if patient else None)
        return [bool(flag) for flag in raised.tolist()]

    def broadcast(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
        """The message of the first process, in all of them.

        Args:
            message: JSON; that of the others is not looked at.

        Raises:
            RankLostError: If one does not answer.
        """
        if self.is_single:
            return message or {}
        data = json.dumps(message).encode("utf-8") if self.is_first else b""
        length = torch.tensor([len(data)], dtype=torch.int64)
        with self._waiting():
            dist.broadcast(length, 0)
            body = torch.empty(int(length), dtype=torch.uint8)
            if self.is_first:
                body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(body, 0)
        found: dict[str, Any] = json.loads(bytes(body.numpy()))
        return found

    def gather(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of all processes, by their numbers, in each of them.

        Args:
            message: JSON of this process.

        Raises:
            RankLostError: If one does not answer.
        """
        if self.is_single:
            return [message]
        data = json.dumps(message).encode("utf-8")
        longest = torch.tensor([len(data)], dtype=torch.int64)
        with self._waiting():
            dist.all_reduce(longest, op=dist.ReduceOp.MAX)
            # JSON ends where the zeros begin.
            own = torch.zeros(int(longest), dtype=torch.uint8)
            own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            found = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(found, own)
        return [json.loads(bytes(body.numpy()).rstrip(b"\0")) for body in found]

    def sum(self, values: torch.Tensor) -> None:
        """Replace values by their sum over all processes, the same bits in each.

        Args:
            values: Contiguous; on the CPU or on the device.

        Raises:
            RankLostError: If one does not answer.
        """
        if not self.is_single:
            with self._waiting():
                dist.all_reduce(values, op=dist.ReduceOp.SUM)
                _settle(values)

    def spread(self, values: torch.Tensor) -> None:
        """Replace values by those of the first process.

        Args:
            values: Contiguous; on the CPU or on the device.

        Raises:
            RankLostError: If one does not answer.
        """
        if not self.is_single:
            with self._waiting():
                dist.broadcast(values, 0)
                _settle(values)

    def close(self) -> None:
        """Leave the others; not waited for, as one may be gone."""
        if not self.is_single and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits += 1
        self.is_waiting = True
        try:
            yield
        except RuntimeError as error:  # torch's own errors of distribution are these as well
            if is_out_of_memory(error):
                raise
            raise _lost(error) from error
        finally:
            self.is_waiting = False


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Inside, libraries may let the processes speak with each other: FSDP, say, which brings weights together.

    Raises:
        RankLostError: In place of what they raise when another process does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not _is_of_connections(error):
            raise
        raise _lost(error) from error


def _is_of_connections(error: RuntimeError) -> bool:
    # Those of gloo are plain ones, and name its source file.
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _lost(error: RuntimeError) -> RankLostError:
    first = (str(error).splitlines() or [""])[0]
    return RankLostError(f"{type(error).__name__}: {first}")


def _settle(values: torch.Tensor) -> None:
    """Wait on the host for what a card has been given to do, so that its limit of time is noticed here."""
    if values.device.type == "cuda":
        torch.cuda.synchronize(values.device)


def join(meeting: Meeting, seconds: float, *, cuda: bool) -> Ranks:
    """Meet the other processes of the run.

    Args:
        meeting: Where, and who this is.
        seconds: How long each waits for the others, here and in common work.
        cuda: Whether gradients are on a card, so that NCCL carries them; all else goes by gloo.

    Raises:
        RankLostError: If they do not come in time.
        UserError: If the address cannot be listened at.
    """
    timeout = timedelta(seconds=seconds)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    ranks = Ranks(meeting.rank, meeting.count, device)
    with ranks._waiting():
        if meeting.is_local:
            dist.init_process_group(
                backend, init_method=meeting.place, rank=meeting.rank, world_size=meeting.count, timeout=timeout
            )
        else:
            store = _store(meeting, timeout)
            dist.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.count, timeout=timeout)
        ranks.patient = dist.new_group(backend="gloo", timeout=timeout)
        ranks.limit_patience(_UNLIMITED.total_seconds())
    return ranks


def _store(meeting: Meeting, timeout: timedelta) -> Any:
    """The store at the address of the meeting; the first process listens there, and on no other address."""
    address, port = meeting.address
    listening = None
    if meeting.rank == 0:
        try:
            listener = socket.create_server((address, port), family=_family(address), backlog=meeting.count)
        except OSError as error:
            raise UserError(
                f"{address}:{port} cannot be listened at: {error.strerror}.",
                "Give torchrun an address of the first machine (--master-addr) and a free port (--master-port).",
            ) from error
        listening = listener.detach()
    return TCPStore(
        address,
        port,
        meeting.count,
        is_master=meeting.rank == 0,
        timeout=timeout,
        master_listen_fd=listening,
    )


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
