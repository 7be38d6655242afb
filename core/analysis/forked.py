"""Forked processes that share the memory of this process and work through a list of items.

Each has its own pipe, so a killed process is noticed at once. In ``ProcessPoolExecutor`` all processes write to one
pipe: one killed in the middle of a result leaves the others waiting forever.
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
    """A forked process died before it returned its result, killed perhaps by the kernel for lack of memory.

    Args:
        status: Its exit status, negative for a signal; None if unknown.
    """

    def __init__(self, status: int | None = None) -> None:
        super().__init__()
        self.status = status


def forked_map(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int, prepare: Callable[[], None]
) -> Iterator[ResultT]:
    """Map a function over items in forked processes; only items and results are sent between processes.

    Args:
        work: The function.
        items: The items.
        processes: Number of processes.
        prepare: Called first in each process.

    Returns:
        The results, in the order of the items.

    Raises:
        ForkedProcessError: If a process dies.
        Exception: Any exception of ``work``.
    """
    context = get_context("fork")
    team: dict[Connection, ForkProcess] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work, prepare), daemon=True)
            process.start()
            # A dead process must leave an end of file.
            theirs.close()
            team[ours] = process
        idle, busy, found = list(team), dict[Connection, int](), dict[int, ResultT]()
        begun = 0
        for number in range(len(items)):
            while number not in found:
                # Only a few ahead: results must not pile up behind a slow item.
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
    # Its end of the pipe closes a moment before it exits.
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
        except BaseException as error:  # raised in the parent
            answer = (None, error)
        try:
            connection.send(answer)
        except OSError:
            os._exit(1)
