"""Ranks: the processes of a run and their messages over :mod:`torch.distributed`.

Messages are numbers and JSON, never pickled objects. Waits in collectives have a limit: a lost process or a pulled
cable ends the others with :class:`RankLostError`, and the supervisor starts them again. Where a process may work alone
for as long as it takes, such as writing a checkpoint, the others wait without a limit in a separate group; its
heartbeats count then, watched by its supervisor or by the others (:mod:`core.worker.distributed.heartbeats`).
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
from core.worker.process.reports import Pulse

#: Practically unlimited wait.
_UNLIMITED = timedelta(days=365)


@dataclass
class Ranks:
    """Processes of a run as seen by one of them.

    A run of one process uses :meth:`single`, whose methods do nothing.

    Args:
        rank: Rank of this process.
        count: Number of processes.
        device: Device of the gradients.
        patient: Process group for waits without a limit.
    """

    rank: int
    count: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None
    is_waiting: bool = field(default=False, init=False)
    """True while this process waits for the others; read by the heartbeat thread."""
    waits: int = field(default=0, init=False)
    """Number of waits so far, including the current one."""
    pulse: Pulse = field(default_factory=Pulse, init=False)
    """Pulse of the training thread, in rank 0."""
    members: list[dict[str, Any]] = field(default_factory=list, init=False)
    """Each process as :class:`core.runs.record.state.Rank`; empty in a run of one."""

    @classmethod
    def single(cls) -> Ranks:
        """The ranks of a run of one process."""
        return cls(0, 1)

    def signs(self) -> dict[str, Any]:
        """Fields of a heartbeat: whether it waits, the number of that wait, and the pulse."""
        is_waiting = self.is_waiting
        return {"waiting": is_waiting, "wait": self.waits if is_waiting else 0, "pulse": self.pulse.count}

    @property
    def is_first(self) -> bool:
        """True for the process that writes the record, receives commands and decides."""
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        """True if there is only one process."""
        return self.count == 1

    def meet(self) -> None:
        """Wait until all processes arrive here, for as long as they live. Together; used before collectives, whose
        waits are short.

        Raises:
            RankLostError: If one is gone.
        """
        self.any([False], patient=True)

    def limit_patience(self, seconds: float) -> None:
        """Limit all waits of this process from now on, in seconds."""
        if self.patient is not None:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), self.patient)

    def any(self, flags: Sequence[bool], *, patient: bool = False) -> list[bool]:
        """For each flag, True if any process has raised it.

        Args:
            flags: Flags of this process.
            patient: Wait for the others without a limit.

        Raises:
            RankLostError: If another process does not answer.
        """
        if self.is_single:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        with self._waiting():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.patient if patient else None)
        return [bool(flag) for flag in raised.tolist()]

    def broadcast(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
        """The message of rank 0, in all processes.

        Args:
            message: JSON; ignored in other ranks.

        Raises:
            RankLostError: If another process does not answer.
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
        """Messages of all processes by rank, in each of them.

        Args:
            message: JSON of this process.

        Raises:
            RankLostError: If another process does not answer.
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
        """Replace values by their sum over all processes, with the same bits in each.

        Args:
            values: Contiguous; on the CPU or on the device.

        Raises:
            RankLostError: If another process does not answer.
        """
        if not self.is_single:
            with self._waiting():
                dist.all_reduce(values, op=dist.ReduceOp.SUM)
                _settle(values)

    def largest(self, value: int) -> int:
        """The largest number of all processes.

        Raises:
            RankLostError: If another process does not answer.
        """
        values = torch.zeros(self.count)
        values[self.rank] = value
        self.sum(values)
        return int(values.max())

    def spread(self, values: torch.Tensor) -> None:
        """Replace values by those of rank 0.

        Args:
            values: Contiguous; on the CPU or on the device.

        Raises:
            RankLostError: If another process does not answer.
        """
        if not self.is_single:
            with self._waiting():
                dist.broadcast(values, 0)
                _settle(values)

    def close(self) -> None:
        """Leave the process group, without waiting, since another process may be gone."""
        if not self.is_single and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits += 1
        self.is_waiting = True
        try:
            yield
        except RuntimeError as error:  # includes torch's distributed errors
            if is_out_of_memory(error):
                raise
            raise _lost(error) from error
        finally:
            self.is_waiting = False


@contextlib.contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Context in which libraries may communicate between processes, such as FSDP gathering weights.

    Raises:
        RankLostError: Instead of their error if another process does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo are plain RuntimeErrors that name its source file.
        if is_out_of_memory(error) or not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> RankLostError:
    first = (str(error).splitlines() or [""])[0]
    return RankLostError(f"{type(error).__name__}: {first}")


def _settle(values: torch.Tensor) -> None:
    """Wait for the card on the host, so that its timeout is noticed here."""
    if values.device.type == "cuda":
        torch.cuda.synchronize(values.device)


def join(meeting: Meeting, seconds: float, *, cuda: bool) -> Ranks:
    """Meet the other processes of the run.

    Args:
        meeting: Address and rank.
        seconds: Timeout, here and in collectives.
        cuda: Gradients are on a card and go by NCCL; everything else goes by gloo.

    Raises:
        RankLostError: If they do not arrive in time.
        UserError: If the address cannot be bound.
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
    """Store at the meeting's address; rank 0 listens only there."""
    address, port = meeting.address
    listening, family = None, socket.AF_INET6 if ":" in address else socket.AF_INET
    if meeting.rank == 0:
        try:
            listener = socket.create_server((address, port), family=family, backlog=meeting.count)
        except OSError as error:
            raise UserError(
                f"{address}:{port} cannot be listened at: {error.strerror}.",
                "Give torchrun an address of the first machine (--master-addr) and a free port (--master-port).",
            ) from error
        listening = listener.detach()
    return TCPStore(
        address, port, meeting.count, is_master=meeting.rank == 0, timeout=timeout, master_listen_fd=listening
    )
