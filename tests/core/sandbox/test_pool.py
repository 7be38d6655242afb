"""Sandbox calls: results, limits, and the processes behind them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core.errors import UserError
from core.sandbox import pool as sandbox
from core.sandbox.frames import LARGEST
from core.sandbox.pool import SandboxError, SandboxPool
from core.sandbox.rights import NO_RIGHTS, Rights
from tests.cases import cases
from tests.core.sandbox import readers
from tests.core.sandbox.readers import Found
from tests.short_list import long_but
from tests.waiting import has_ended, wait_for


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    """The processes of all tests that do not ask which of them there are."""
    made = SandboxPool()
    yield made
    made.close()


@pytest.fixture
def new_pool() -> Iterator[SandboxPool]:
    """A pool that has no process yet."""
    made = SandboxPool()
    yield made
    made.close()


def call(
    pool: SandboxPool,
    function: Callable[..., object],
    *args: object,
    seconds: float = 60,
    keep: str = "",
    rights: Rights = NO_RIGHTS,
) -> object:
    return pool.call(function, "The file", seconds, keep, "Try another.", rights, *args)


def test_results_come_back_as_they_are(pool: SandboxPool) -> None:
    found = Found("a\x00\u202e\U0001f600", float("inf"), Path("/x y"), (1, 2), Found("", -0.5, Path()))
    assert call(pool, readers.echo, found) == found
    assert call(pool, readers.numbers, 3) == [0, 1, 2]
    assert call(pool, readers.process) != os.getpid()


def test_what_a_library_prints_is_no_answer(pool: SandboxPool) -> None:
    assert [call(pool, readers.say) for _ in range(3)] == [1, 1, 1]


def test_it_sees_the_directory_and_the_variables_of_the_one_who_asks(
    pool: SandboxPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(pool, readers.process)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALTUNE_HOME", "elsewhere")
    assert call(pool, readers.directory) == str(tmp_path)
    assert call(pool, readers.variable, "LOCALTUNE_HOME") == "elsewhere"
    # A directory that has been removed is not the one of an earlier call.
    (removed := tmp_path / "removed").mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    assert call(pool, readers.directory) == "/"
    assert call(pool, readers.process) == first


def test_what_its_function_refuses_is_reported(pool: SandboxPool) -> None:
    before = call(pool, readers.process)
    with pytest.raises(UserError) as caught:
        call(pool, readers.refuse)
    assert (caught.value.message, caught.value.hint) == ("There is nothing in it.", "Put something in.")
    assert not isinstance(caught.value, SandboxError)
    assert call(pool, readers.process) == before


@cases(
    ("function", "args", "part"),
    [
        (readers.fail, (), "The file cannot be read: ZeroDivisionError: by nothing"),
        (readers.panic, (), "The file cannot be read: PanicError: called `Option::unwrap()`"),
        (readers.recurse, (), "The file cannot be read: RecursionError"),
        (readers.no_json, (), "The file cannot be read: TypeError"),
        (readers.wrong_kind, (), "The file cannot be read: its content makes no sense."),
        (readers.leave, (), "The file cannot be read: its reader ended with code 7."),
        (readers.die, (signal.SIGSEGV,), "The file cannot be read: its reader was ended by SIGSEGV."),
        (readers.die, (signal.SIGBUS,), "The file cannot be read: its reader was ended by SIGBUS."),
        (readers.fill, (), "The file needs more than 2 GB of memory"),
        (readers.fill_below, (), "The file needs more than 2 GB of memory"),
        (readers.text, (LARGEST,), "The file needs more than 2 GB of memory"),
        (readers.die, (signal.SIGXCPU,), "The file takes more than 60 s, which none should."),
    ],
)
def test_what_ends_its_process_is_a_sentence_and_the_next_call_works(
    pool: SandboxPool, function: Callable[..., object], args: tuple[object, ...], part: str
) -> None:
    with pytest.raises(SandboxError) as caught:
        call(pool, function, *args)
    assert part in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.hint
    assert call(pool, readers.numbers, 2) == [0, 1]


def check_too_slow(pool: SandboxPool, function: Callable[..., object]) -> None:
    with pytest.raises(SandboxError, match=r"^The file takes more than 0\.2 s, which none should\."):
        call(pool, function, seconds=0.2)
    assert call(pool, readers.numbers, 1) == [0]


def test_what_takes_too_much_time_is_ended(pool: SandboxPool) -> None:
    check_too_slow(pool, readers.spin)


# The kernel waits for some seconds of work; test_limits.py asks it for less.
@pytest.mark.long
def test_what_takes_too_much_time_in_a_library_is_ended(pool: SandboxPool) -> None:
    check_too_slow(pool, readers.spin_below)


def test_what_waits_for_ever_is_ended(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_LEAST_WAIT", 0.1)
    with pytest.raises(SandboxError, match=r"takes more than 0\.1 s"):
        call(pool, readers.wait_for_nothing, seconds=0.1)


def test_calls_of_one_name_share_a_process_and_take_turns(new_pool: SandboxPool) -> None:
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(call(new_pool, readers.process, keep="tokens"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert call(new_pool, readers.process) != found[0]


def test_closing_ends_processes_and_what_they_are_at(new_pool: SandboxPool) -> None:
    idle = call(new_pool, readers.process)
    pids: list[object] = [idle]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call(new_pool, readers.wait_for_nothing)
        except UserError as error:
            errors.append(error)

    call(new_pool, readers.process, keep="tokens")
    thread = threading.Thread(target=work)
    thread.start()
    wait_for(lambda: bool(new_pool._busy), 30, "the call to begin")
    pids += [process.helper.process.pid for process in new_pool._busy]
    new_pool.close()
    thread.join(30)
    assert not thread.is_alive()
    assert [str(error) for error in errors] == ["The file is no longer read: the program ends."]
    # The kernel ends readers, which are children of those processes.
    wait_for(lambda: all(has_ended(int(str(pid))) for pid in pids), 10, "the processes to end")


def test_a_bounded_process_calls_directly(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "is_confined", lambda: True)
    assert call(pool, readers.process) == os.getpid()


@cases(
    ("owner", "name", "error"),
    [
        (subprocess, "Popen", BlockingIOError(11, "Resource temporarily unavailable")),
        (os, "pipe", OSError(24, "Too many open files")),
    ],
)
def test_no_room_for_a_process_is_a_sentence(
    new_pool: SandboxPool, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, error: OSError
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(UserError, match=f"A helper process cannot be started: {error.strerror}"):
        call(new_pool, readers.process)


@pytest.mark.parametrize("how", long_but(["SIG_BLOCK"], ["SIG_BLOCK", "SIG_IGN"]))
def test_signals_that_are_held_back_in_the_one_who_asks_end_it_all_the_same(tmp_path: Path, how: str) -> None:
    hold = (
        "signal.pthread_sigmask(signal.SIG_BLOCK, held)"
        if how == "SIG_BLOCK"
        else "[signal.signal(number, signal.SIG_IGN) for number in held]"
    )
    script = (
        "import os, signal, sys; from pathlib import Path; from core.sandbox.pool import sandboxed, SandboxError\n"
        "from core.sandbox.rights import Rights; from tests.core.sandbox.readers import match_for_ever, start_child\n"
        f"held = {{signal.SIGIO, signal.SIGXCPU, signal.SIGPROF}}; {hold}\n"
        "try: sandboxed(match_for_ever, 'It', seconds=0.2)()\n"
        "except SandboxError as error: print(error.message, flush=True)\n"
        "rights = Rights(writes=(sys.argv[2],), starts_helpers=True)\n"
        "sandboxed(start_child, 'It', seconds=600, rights=rights)(Path(sys.argv[1]))\n"
    )
    written = tmp_path / "pids"
    command = [sys.executable, "-c", script, str(written), str(tmp_path)]
    surroundings = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "It takes more than 0.2 s, which none should.\n"
        wait_for(lambda: written.exists() and written.read_text().endswith("\n"), 60, "the call to begin")
        pids = [int(pid) for pid in written.read_text().split()]
        assert len(pids) > 1
        assert not any(map(has_ended, pids))
        asker.kill()
    wait_for(lambda: all(map(has_ended, pids)), 10, "the sandbox and its child to end")


def test_failures_leave_neither_descriptors_nor_processes(new_pool: SandboxPool) -> None:
    def counted() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(psutil.Process().children(recursive=True))

    with pytest.raises(SandboxError):
        call(new_pool, readers.leave)
    before = counted()
    for _ in range(3):
        with pytest.raises(SandboxError):
            call(new_pool, readers.leave)
    assert counted() == before
