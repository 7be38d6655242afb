"""Processes of a run: how they meet, and how ranks after the first carry out its orders without writing a record."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from core.config.schema import Config
from core.errors import UserError
from core.runs.control.devices import Hold, take_beside
from core.runs.record.events import NoticeEvent, RanksEvent
from core.runs.record.state import EXIT_CODES, Rank, hostname, write_ranks
from core.runs.record.store import Run
from core.worker.distributed.rendezvous import Meeting, RankLostError, forget
from core.worker.process import environment
from core.worker.process.control import STOP_SIGNALS, Controls
from core.worker.process.devices import own_device, shared_device
from core.worker.process.log import log, log_exception
from core.worker.process.recorder import Recorder
from core.worker.process.reports import Reports
from core.worker.supervise.verdict import EXIT_CRASHED, EXIT_LOST

if TYPE_CHECKING:
    from core.worker.distributed.ranks import Ranks
    from core.worker.train import FinetuneRecipe

#: Message field that names other runs on the process's device.
_BESIDE = "beside"


def follow_first(run: Run, meeting: Meeting, reports: Reports, *, resume: bool) -> int:
    """Do the part of a process after the first; returns the exit code.

    Args:
        run: The run.
        meeting: Rank of this process and address of the others.
        reports: Messages to the supervisor.
        resume: Continue from a checkpoint.
    """
    # Only rank 0 reacts to a stop, and orders the others.
    for number in (*STOP_SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    recorder = Recorder(run, keeps=False, pass_on=lambda *notice: reports.tell(notice=notice))

    # The supervisor receives the reason of a failure.
    try:
        config = run.config()
        ranks = meet(run, config, meeting, reports)
        follow(config, recorder, ranks, resume=resume)
        ranks.close()
        return 0
    except RankLostError as error:
        log(f"error: another process of the run does not answer: {error}")
        reports.tell(error=str(error))
        return EXIT_LOST
    except UserError as error:
        log(f"error: {error}")
        reports.tell(error=error.message, hint=error.hint)
        return EXIT_CODES["failed"]
    except BaseException as error:
        log_exception()
        first = (str(error).splitlines() or [""])[0]
        reports.tell(error=f"{type(error).__name__}: {first}")
        return EXIT_CRASHED


def follow(config: Config, recorder: Recorder, ranks: Ranks, *, resume: bool) -> None:
    """Do the part of a process after the first.

    Args:
        config: The configuration, paths absolute.
        recorder: A recorder that writes nothing.
        ranks: The processes of the run.
        resume: Continue from a checkpoint.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If the run cannot continue.
    """
    from core.worker.distributed.ranks import lost_ranks_told
    from core.worker.process.determinism import nondeterminism_explained
    from core.worker.setup.build import set_up
    from core.worker.train import FinetuneRecipe

    # Commands go to rank 0.
    controls = Controls()
    with nondeterminism_explained(), lost_ranks_told():
        parts = set_up(config, recorder, controls, ranks, resume=resume)
        carry_out_orders(FinetuneRecipe(config, recorder, controls, parts))


def carry_out_orders(recipe: FinetuneRecipe) -> None:
    """Rehearse, then carry out the orders of rank 0 until it orders to leave.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If it cannot go on.
    """
    recipe.rehearse()
    parts, state = recipe.parts, recipe.parts.state
    orders = parts.strategy.orders
    with parts.governor.governing(state.overrides):
        parts.strategy.ranks.meet()
        while True:
            name, args = orders.take()
            if name == "leave":
                return
            if name == "step":
                state.step, state.overrides = int(args["step"]), dict(args["overrides"])
                recipe.step()
            elif name == "forward":
                parts.strategy.lend()
            else:
                parts.checkpointer.lend(name)


def meet(run: Run, config: Config, meeting: Meeting, reports: Reports) -> Any:
    """Import the libraries and meet the other processes. Returns the :class:`~core.worker.distributed.ranks.Ranks`.

    Raises:
        RankLostError: If they do not arrive in time.
        UserError: If the device cannot be used.
    """
    meeting.keep_inside(os.environ)
    # Libraries that find torchrun's variables would connect on their own.
    forget()
    held = Hold()
    if reports.supervisor is None:
        if config.hardware.device != "cpu":
            environment.choose_card(config, meeting.local)
        # Processes started by another program cannot wait for a card one by one.
        held = take_beside([own_device(config, meeting.local)], run.id)
    from core.worker.libraries import import_libraries

    import_libraries()
    from core.worker.distributed.ranks import join
    from core.worker.model.device import choose_device

    cuda = choose_device(config.hardware.device).type == "cuda"
    ranks = join(meeting, config.distributed.timeout, cuda=cuda)
    reports.signs = ranks.signs
    if reports.supervisor is None:
        from core.worker.distributed.heartbeats import keep_beating

        keep_beating(
            ranks.rank,
            ranks.count,
            config.distributed.timeout,
            lambda: ranks.is_waiting,
            _give_up,
            wait=lambda: ranks.waits,
            pulse=lambda: None if ranks.is_waiting else ranks.pulse.count,
        )
    where = {"host": hostname(), "pid": os.getpid(), "device": f"cuda:{meeting.local}" if cuda else "cpu"}
    reports.tell(**where)
    ranks.members = ranks.gather({"rank": meeting.rank, **where, _BESIDE: held.beside})
    return ranks


def _give_up(why: str) -> None:
    """End this process from another thread: nothing else interrupts a library that waits for a lost process."""
    log(f"error: another process of the run does not answer: {why}")
    os._exit(EXIT_LOST)


def tell_ranks(
    run: Run, config: Config, recorder: Recorder, members: list[dict[str, Any]], *, is_supervised: bool
) -> None:
    """Record the processes of the run, in rank 0.

    Args:
        run: The run.
        config: Its configuration.
        recorder: Its recorder.
        members: The processes, with other runs found on each one's device.
        is_supervised: A supervisor follows their heartbeats and records them itself.
    """
    strategy = config.distributed.strategy
    ranks = [{name: value for name, value in member.items() if name != _BESIDE} for member in members]
    recorder.event(RanksEvent(ranks=ranks, strategy="" if strategy == "auto" else strategy))
    for notice in _shared_devices(members):
        recorder.warn(notice.code, notice.message, notice.hint)
    if not is_supervised:
        with suppress(OSError):
            write_ranks(run.path, Rank.all_from(ranks))


def _shared_devices(members: list[dict[str, Any]]) -> Iterator[NoticeEvent]:
    """Warnings about devices shared with other runs, one per device."""
    told = set[tuple[str, str]]()
    for member in members:
        device = member["host"], member["device"]
        if (beside := member.get(_BESIDE)) and device not in told:
            told.add(device)
            yield shared_device(beside, f"Process {member['rank']} on {member['host']}" if member["rank"] else "")
