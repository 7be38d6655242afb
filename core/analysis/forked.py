"""Forked processes that share this one's memory and work through a list of items.

Each has a pipe of its own, so that one that is killed, whatever it was doing, is noticed at once: in
``ProcessPoolExecutor`` all write to one pipe, and a process killed in the middle of a result leaves the others waiting
for the rest of it without end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ForkedProcessError(Exception):
    """A forked process is gone before it has given its result; the kernel may have ended it for want of memory.

    Args:
        status: Its exit status, negative for a signal; None where it is not known.
    """

    def __init__(self, status: int | None = None) -> None:
        super().__init__()
        self.status = status


def forked_map(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int, prepare: Callable[[], None]
) -> Iterator[ResultT]:
    """Results of the items in their order; nothing but items and results is sent between the processes.

    Args:
        work: What is done with an item.
        items: The items.
        processes: How many there are.
        prepare: Called first in each of them.

    Raises:
        ForkedProcessError: If a process dies.
        Exception: Whatever ``work`` raises.
    """
    context = get_context("fork")
    team: dict[Connection, ForkProcess] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, prepare), daemon=True)
            process.start()
            # A process that is gone must leave an end of file.
            theirs.close()
            team[ours] = process
        idle, busy, found = list(team), dict[Connection, int](), dict[int, ResultT]()
        begun = 0
        for number in range(len(items)):
            while number not in found:
                # A few ahead: a slow item must not make the results behind it pile up.
                while idle and begun < min(len(items), number + 2 * processes + 1):
                    connection = idle.pop()
                    _send(connection, items[begun], team[connection])
                    busy[connection] = begun
                    begun += 1
                for ready in wait(list(busy)):
                    if isinstance(ready, Connection):
                        found[busy.pop(ready)] = _receive(ready, team[ready])
                        idle.append(ready)
            yield found.pop(number)
    finally:
        for connection, process in team.items():
            process.kill()
            process.join()
            connection.close()


def _send(connection: Connection, item: object, process: ForkProcess) -> None:
    try:
        connection.send(item)
    except OSError as error:
        raise _death(process) from error


def _receive(connection: Connection, process: ForkProcess) -> Any:
    try:
        result, error = connection.recv()
    except (EOFError, OSError) as gone:
        raise _death(process) from gone
    if error is not None:
        raise error
    return result


def _death(process: ForkProcess) -> ForkedProcessError:
    # Its end of the pipe closes a moment before it has ended.
    process.join(1)
    return ForkedProcessError(process.exitcode)


def _serve(connection: Connection, work: Callable[[ItemT], object], prepare: Callable[[], None]) -> None:
    prepare()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            os._exit(0)
        answer: tuple[object, BaseException | None]
        try:
            answer = (work(item), None)
        except BaseException as error:  # whatever it is, it is for the one who asked
            answer = (None, error)
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)
