"""Starts of the processes of a run: command line, environment and log of each, here and on other machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.config.schema import Config
from core.hardware.visible import VISIBLE
from core.launch.nodes.network import resolve
from core.runs.record.store import Run
from core.worker.distributed.rendezvous import Meeting, file_meeting, tcp_meeting
from core.worker.supervise.process import Start
from core.worker.supervise.ssh_rank import SIBLINGS

#: Makes the starts of all processes: told their options (``--resume``) and a file to meet over that does not exist yet.
Starts = Callable[[Sequence[str], Path], Sequence[Start]]


def local_starts(run: Run, cards: Sequence[str | None], environment: Mapping[str, str]) -> Starts:
    """How the processes of a run on this machine alone are started.

    Args:
        run: The run.
        cards: The card of each.
        environment: Of the supervisor as it was started.
    """

    def make(options: Sequence[str], meeting: Path) -> list[Start]:
        return [
            local_start(
                run,
                Meeting(rank, len(cards), rank, file_meeting(meeting)),
                card,
                options,
                environment,
                siblings=len(cards),
            )
            for rank, card in enumerate(cards)
        ]

    return make


def spread_starts(
    run: Run,
    config: Config,
    cards: Sequence[str | None],
    environment: Mapping[str, str],
    ssh_environment: Mapping[str, str],
) -> Starts:
    """How the processes of a run on several machines are started: here as on one machine, elsewhere over ssh.

    Args:
        run: The run.
        config: Its configuration; every machine has as many processes.
        cards: The card of each process of this machine.
        environment: Of the supervisor as it was started.
        ssh_environment: The same with what ssh needs.
    """
    hosts, here = config.distributed.other_hosts, len(cards)
    count = here * (1 + len(hosts))

    def elsewhere(host: str, number: int, local: int, place: str, options: Sequence[str]) -> Start:
        variables = {**ssh_environment, **Meeting(number, count, local, place).variables(), SIBLINGS: str(here)}
        command = [sys.executable, "-m", "core.worker.supervise.ssh_rank", host, str(run.path), *options]
        log = run.path / f"worker-rank{number}.log"
        return Start(number, command, variables, log, f"Process {number} on {host}")

    def make(options: Sequence[str], _meeting: Path) -> list[Start]:
        place = tcp_meeting(resolve(config.distributed.address or ""), config.distributed.port)
        starts = [
            local_start(run, Meeting(rank, count, rank, place), card, options, environment, siblings=here)
            for rank, card in enumerate(cards)
        ]
        for order, host in enumerate(hosts, start=1):
            starts += [elsewhere(host, order * here + local, local, place, options) for local in range(here)]
        return starts

    return make


def local_start(
    run: Run,
    meeting: Meeting,
    card: str | None,
    options: Sequence[str],
    environment: Mapping[str, str],
    *,
    siblings: int,
) -> Start:
    """How one process on this machine is started.

    Args:
        run: The run.
        meeting: Its place among the others.
        card: Its card; None for none that was chosen.
        options: Those of the worker.
        environment: Of the supervisor as it was started.
        siblings: How many share the cores of this machine.
    """
    variables = {**environment, **meeting.variables()}
    if card is not None:
        variables[VISIBLE] = card
    cores = len(os.sched_getaffinity(0))
    variables.setdefault("OMP_NUM_THREADS", str(max(1, cores // siblings)))
    path = run.log_path if meeting.rank == 0 else run.path / f"worker-rank{meeting.rank}.log"
    command = [sys.executable, "-m", "core.worker", str(run.path), *options]
    return Start(meeting.rank, command, variables, path, f"Process {meeting.rank}")
