"""Machines of a run compared before it starts: what differs is refused, with the machine, the thing and both values."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.config.document import dump_config
from core.config.schema import Config
from core.errors import UserError
from core.launch.nodes.facts import MachineFacts, gather
from core.launch.nodes.network import MeetingPoint
from core.launch.nodes.places import Places
from core.launch.nodes.ssh import ssh_failure, start_ssh
from core.text import one_line

AGENT = "core.launch.nodes.agent"
#: Most bytes of an answer.
_ANSWER_LIMIT = 4 << 20
#: Digits of a hash in a sentence.
_DIGITS = 12


def compare_machines(config: Config, tell: Callable[[str], None] = lambda _: None) -> list[MachineFacts]:
    """Ask every machine of a run what it has of it, all at once, and refuse a difference.

    Args:
        config: The checked configuration, with ``distributed.hosts`` and ``distributed.address``.
        tell: Is told what is being done, in a sentence.

    Returns:
        The facts of this machine and of the others, in the order of ``distributed.hosts``.

    Raises:
        UserError: If a machine cannot be reached, reaches this one not, lacks something or has something else.
    """
    hosts = config.distributed.other_hosts
    with MeetingPoint(config.distributed.address or "", config.distributed.port) as meeting:
        request = {
            "config": dump_config(config),
            "places": Places.here().to_dict(),
            "address": meeting.address,
            "port": meeting.port,
        }
        tell(f"comparing software, model and data with {', '.join(one_line(host, 60) for host in hosts)}")
        with _Questions(hosts, request) as questions:
            head = gather(config, config)
            others = list(questions.answers())
    for host, other in zip(hosts, others, strict=True):
        for problem in differences(head, host, other):
            raise problem
    # On a CPU it does no harm, and is a way to try things out.
    own = {} if config.hardware.device == "cpu" else {meeting.address: "This machine"}
    _refuse_same_machine(own, hosts, others)
    return [head, *others]


def differences(head: MachineFacts, host: str, other: MachineFacts) -> Iterator[UserError]:
    """What another machine has otherwise than this one, each in a sentence.

    Args:
        head: The facts of this machine.
        host: The other machine as ``distributed.hosts`` names it.
        other: Its facts.
    """
    for name, mine in head.software.items():
        theirs = other.software.get(name, "none")
        if theirs != mine:
            what = "The code of localtune-tui" if name == "code" else name
            yield UserError(
                f"{what} differs: {host} has {_version(theirs)}, this machine {_version(mine)}.",
                "Install the same version on both.",
            )
    if other.model != head.model:
        yield UserError(
            f"The base model differs: its hash is {_short(other.model)} on {host} and {_short(head.model)} here.",
            "Copy its directory from one machine to the other.",
        )
    for name, mine in head.files.items():
        theirs = other.files.get(name, "")
        if theirs != mine:
            found = f"its SHA-256 is {_short(theirs)}" if theirs else "it is not there"
            yield UserError(
                f"{one_line(name, 200)} differs: on {host} {found}, here {_short(mine)}.",
                "Copy the file from one machine to the other.",
            )
    if more := sorted(set(other.files) - set(head.files)):
        yield UserError(
            f"{one_line(more[0], 200)} is on {host} and not here.", "Copy the files from one machine to the other."
        )


def _refuse_same_machine(seen: dict[str, str], hosts: Sequence[str], others: Sequence[MachineFacts]) -> None:
    """Refuse two names of one machine: its cards would be taken twice.

    Args:
        seen: Names that are taken, by address.
        hosts: The names of the others.
        others: Their facts.
    """
    for host, other in zip(hosts, others, strict=True):
        if other.address in seen:
            raise UserError(
                f"{seen[other.address]} and {host} are one machine, {one_line(other.address, 60)}.",
                "Name each machine once in distributed.hosts; the first one, this machine, not at all.",
            )
        seen[other.address] = host


def _version(value: str) -> str:
    return "none" if value == "none" else one_line(value, 40)


def _short(digest: str) -> str:
    return one_line(digest.removeprefix("sha256:"), 80)[:_DIGITS]


class _Questions:
    """A request to the agents of several machines at once; all end with the block.

    Args:
        hosts: The machines.
        request: The request, as JSON.
    """

    def __init__(self, hosts: Sequence[str], request: dict[str, Any]) -> None:
        self._line = (json.dumps(request) + "\n").encode()
        self._hosts = hosts
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[tuple[bytes, bytes]] = [(b"", b"") for _ in hosts]
        try:
            for host in hosts:
                self._processes.append(start_ssh(host, AGENT))
        except BaseException:
            self._end()
            raise
        self._threads = [
            threading.Thread(target=self._ask, args=(place,), daemon=True) for place in range(len(self._processes))
        ]

    def __enter__(self) -> _Questions:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        for thread in self._threads:
            thread.join()

    def answers(self) -> Iterator[MachineFacts]:
        """The answers in the order of the machines.

        Raises:
            UserError: For the first machine that has none.
        """
        for place, host in enumerate(self._hosts):
            self._threads[place].join()
            output, said = self._outputs[place]
            yield _answer(host, self._processes[place].returncode, output, said)

    def _ask(self, place: int) -> None:
        self._outputs[place] = self._processes[place].communicate(self._line)

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()


def _answer(host: str, status: int, output: bytes, said: bytes) -> MachineFacts:
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    try:
        answer = json.loads(output[:_ANSWER_LIMIT].splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        raise ssh_failure(host, status, lines) from None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        raise UserError(f"{host}: {one_line(answer['error'])}", one_line(str(answer.get("hint", ""))))
    try:
        return MachineFacts.from_dict(answer)
    except ValueError:
        raise UserError(f"{host} has another version of localtune-tui.", "Install the same one there.") from None
