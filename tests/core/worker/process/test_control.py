"""The socket and the queue between those who ask and the training thread."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.runs.control.protocol import LINE_LIMIT, Request
from core.runs.record import store as sockets
from core.worker.process import control
from core.worker.process.control import (
    STOP_SIGNALS,
    Command,
    Controls,
    ControlServer,
    ParkRequested,
    StopRequested,
    install_signals,
)
from tests.cases import cases
from tests.waiting import wait_for


class Peer:
    """A connection that speaks the protocol by hand."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(20)
        self.connection.connect(str(path))
        self.lines = self.connection.makefile("rb")

    def send(self, command: str, identity: str = "1", **args: Any) -> None:
        self.connection.sendall(json.dumps({"id": identity, "command": command, "args": args}).encode() + b"\n")

    def ask(self, command: str, identity: str = "1", **args: Any) -> dict[str, Any]:
        """Send a command; the next line of the answer."""
        self.send(command, identity, **args)
        return self.read()

    def read(self) -> dict[str, Any]:
        message = json.loads(self.lines.readline())
        assert isinstance(message, dict)
        return message

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


class Place:
    """A server in a directory of its own; nobody carries out commands but the test."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "control.sock"
        self.controls = Controls()
        self.server = ControlServer(self.path, self.controls, lambda: {"state": "training", "step": 7})

    def next(self) -> Command:
        command = self.controls.wait(60)
        assert command is not None
        return command


@pytest.fixture
def place() -> Iterator[Place]:
    # Not tmp_path, which may be too long for a socket.
    with tempfile.TemporaryDirectory() as directory:
        made = Place(Path(directory))
        yield made
        made.controls.close()
        made.server.close()


def test_the_socket_is_for_this_user_alone_and_goes_with_the_server(place: Place) -> None:
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600
    second = Controls()
    ControlServer(place.path, second, dict).close()  # replaces the socket of an earlier worker
    assert not place.path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="not run: only root can become another user")
def test_another_user_is_turned_away_even_where_the_file_lets_him_in(place: Place) -> None:
    place.path.chmod(0o666)
    place.path.parent.chmod(0o711)
    program = (
        "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\npeer = socket.socket(socket.AF_UNIX)\n"
        'peer.settimeout(20)\npeer.connect(sys.argv[1])\npeer.sendall(b\'{"id": 1, "command": "ping"}\\n\')\n'
        "print(repr(peer.recv(1000)))"
    )
    command = [shutil.which("python3") or sys.executable, "-c", program, str(place.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.strip() == "b''" or "ConnectionResetError" in done.stderr or "BrokenPipe" in done.stderr
    assert '"ok"' not in done.stdout
    assert Peer(place.path).ask("ping")["ok"] is True


@cases(
    ("line", "error"),
    [
        (b"\xff\x00\n", "Not understood"),
        (b"[]\n", "Not understood"),
        (b"{}\n", "Not understood"),
        (b"[" * 200_000 + b"\n", "Not understood"),
        (b'{"id": 1.5, "command": "ping"}\n', "Not understood"),
        (b'{"id": "1", "command": "explode"}\n', "There is no command explode"),
        (b'{"id": "1", "command": "\x1b%s"}\n' % (b"x" * 500), "Not understood"),
        (b'{"id": true, "command": "ping"}\n', "Not understood"),
        (b'{"id": "1", "command": "set", "args": {"a": 1%s}}\n' % (b"0" * 500), "Not understood"),
    ],
)
def test_garbage_is_refused_and_the_connection_goes_on(place: Place, line: bytes, error: str) -> None:
    peer = Peer(place.path)
    peer.connection.sendall(line)
    answer = peer.read()
    assert answer["ok"] is False
    assert answer["error"].startswith(error)
    assert peer.ask("ping", "a") == {"id": "a", "ok": True, "state": "training", "step": 7}
    assert place.controls.wait(0.01) is None


def test_a_line_without_end_is_cut_off(place: Place) -> None:
    peer = Peer(place.path)
    peer.connection.sendall(b"x" * (LINE_LIMIT + 1))
    assert peer.read()["error"] == "The line is too long."
    assert peer.lines.readline() == b""


def test_commands_wait_in_order_and_are_answered_to_who_asked(place: Place) -> None:
    first, second = Peer(place.path), Peer(place.path)
    first.send("pause", "a")
    command = place.next()
    second.send("set", "b", key=1)
    later = place.next()
    assert (command.request.command, later.request.command, later.request.args) == ("pause", "set", {"key": 1})
    later.refuse("No.", "Do not.")
    command.token("hel", "base")
    command.answer(step=3)
    assert second.read() == {"id": "b", "ok": False, "error": "No.", "hint": "Do not."}
    assert first.read() == {"id": "a", "token": "hel", "source": "base"}
    assert first.read() == {"id": "a", "ok": True, "step": 3}


def test_a_stop_is_known_before_it_is_carried_out_and_one_at_once_goes_first() -> None:
    controls = Controls()
    assert controls.stop_sender is None
    controls.check_stop()
    controls.put(Command(Request("1", "stop"), print))
    controls.request_stop("SIGTERM")
    for now in (False, True):
        with pytest.raises(StopRequested) as caught:
            controls.check_stop()
        assert (caught.value.sender, caught.value.now) == ("socket", now), "who asked first"
        controls.request_stop("SIGINT", now=True)


def test_giving_the_device_back_waits_for_the_step_and_can_be_taken_back(place: Place) -> None:
    peer = Peer(place.path)
    peer.send("park", "p")
    wait_for(lambda: place.controls.is_leaving, 20, "the request")
    assert place.controls.pending == ("park",)
    assert place.controls.stop_sender is None
    peer.send("withdraw", "w", what="park")
    answers = {answer["id"]: answer for answer in (peer.read(), peer.read())}
    assert answers["p"]["withdrawn"] is True
    assert answers["w"]["withdrawn"] == ["park"]
    place.controls.check_stop()
    place.controls.request_park("another program", "chess is running")
    with pytest.raises(ParkRequested) as caught:
        place.controls.check_stop()
    assert (caught.value.sender, caught.value.cause) == ("another program", "chess is running")
    place.controls.request_stop("SIGTERM")
    with pytest.raises(StopRequested) as stopped:
        place.controls.check_stop()
    assert not isinstance(stopped.value, ParkRequested), "who ends a run does not park it"


def test_closing_the_connection_cancels_what_it_asked_for(place: Place) -> None:
    peer = Peer(place.path)
    peer.send("generate")
    command = place.next()
    assert not command.cancelled.is_set()
    peer.close()
    assert command.cancelled.wait(60)
    command.token("nobody reads this", "base")
    command.answer()


def test_a_peer_that_does_not_read_delays_the_training_only_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SEND_SECONDS", 1)
    peer = Peer(place.path)
    peer.send("generate")
    command = place.next()
    began = time.monotonic()
    for _ in range(50):
        command.token("x" * 100_000, "base")
    assert 0.9 < time.monotonic() - began < 30
    assert command.cancelled.wait(60)


@pytest.mark.parametrize(
    ("parks", "error", "stopped"), [(False, "The run has ended.", "over"), (True, "The run is being parked.", "parked")]
)
def test_everyone_is_answered_at_the_end_and_parking_pauses(
    place: Place, parks: bool, error: str, stopped: str
) -> None:
    asking, other, late = Peer(place.path), Peer(place.path), Peer(place.path)
    asking.send("generate")
    wait_for(lambda: place.controls.waiting_count, 20, "the first command")
    other.send("pause" if parks else "stop")
    wait_for(lambda: place.controls.waiting_count == 2, 20, "the second command")
    assert place.controls.stop_sender == (None if parks else "socket")
    place.controls.close(error, met=("pause",) if parks else ())
    assert asking.read()["error"] == error
    assert other.read() == {"id": "1", "ok": True, "state": stopped}
    assert late.ask("checkpoint")["ok"] is False


def test_a_socket_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"control socket .* cannot be made") as caught:
        ControlServer(tmp_path / "file" / "control.sock", Controls(), dict)
    assert "XDG_RUNTIME_DIR" in caught.value.hint


def test_signals_ask_for_a_stop_and_the_terminal_going_means_nothing() -> None:
    numbers = (*STOP_SIGNALS, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        for number in STOP_SIGNALS:
            controls = Controls()
            install_signals(controls)
            os.kill(os.getpid(), signal.SIGHUP)
            assert controls.stop_sender is None
            os.kill(os.getpid(), number)
            wait_for(partial(getattr, controls, "stop_sender"), 20, "the signal")
            assert controls.stop_sender == number.name
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_sockets_that_killed_workers_left_are_removed_by_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(path: Path) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        return made

    with tempfile.TemporaryDirectory() as directory:
        runtime = Path(directory)
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        bound(runtime / "localtune-1.sock").close()
        full = bound(runtime / "localtune-3.sock")
        with full, bound(runtime / "bus.sock"), socket.socket(socket.AF_UNIX) as waiting:
            full.listen(0)
            waiting.connect(str(runtime / "localtune-3.sock"))
            (runtime / "localtune-4.sock").touch()
            server = ControlServer(runtime / "localtune-2.sock", Controls(), dict)
            kept = ["bus.sock", "localtune-2.sock", "localtune-3.sock", "localtune-4.sock"]
            assert sorted(path.name for path in runtime.iterdir()) == kept
            assert control.remove_stale_sockets() == []
            server.close()


def test_commands_do_not_wait_without_number(place: Place) -> None:
    peer = Peer(place.path)
    for number in range(control.WAITING_LIMIT + 1):
        peer.send("checkpoint", str(number))
    refused = peer.read()
    assert (refused["id"], refused["error"]) == (str(control.WAITING_LIMIT), "Too many commands are waiting.")
    # A stop is heard whatever waits.
    assert peer.ask("stop", "stop") == {"id": "stop", "ok": True}
    assert place.controls.stop_sender == "socket"
    for command in place.controls.waiting():
        command.answer()
    assert peer.read()["ok"] is True


@contextlib.contextmanager
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory that is not there yet, in a directory that everybody may write to."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", f"{directory}/localtune-0")
        monkeypatch.setattr(sockets, "_socket_places", lambda: [Path(directory, "none"), Path(directory)])
        yield Path(directory, "localtune-0")


def plant(place: Path, what: str) -> None:
    if "link" in what:
        (place.parent / "trap").mkdir(mode=0o700)
        place.symlink_to("trap" if what != "link to nothing" else "nowhere")
    elif what == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777 if what == "open directory" else 0o700)
    if "foreign" in what:
        os.chown(place, 65534, 65534, follow_symlinks=False)


@cases("what", ["link", "link to nothing", "foreign link", "file", "open directory", "foreign directory"])
def test_planted_files_are_neither_used_nor_in_the_way(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "foreign" in what and os.getuid() != 0:
        pytest.skip("not run: only root can give a file away")
    with runtime_directory(monkeypatch) as runtime:
        plant(runtime, what)
        server = ControlServer(runtime / "localtune-1.sock", Controls(), dict)
        directory = server.path.parent
        assert directory.parent == runtime.parent
        assert directory not in (runtime, runtime.parent / "trap")
        assert stat.S_IMODE(directory.lstat().st_mode) == 0o700
        assert Peer(server.path).ask("ping")["ok"] is True
        server.close()
        assert not directory.exists()


@cases("name", ["localtune-1.sock", "x" * 120])
def test_a_private_runtime_directory_is_used_unless_the_path_is_too_long(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime_directory(monkeypatch) as runtime:
        server = ControlServer(runtime / name, Controls(), dict)
        assert (server.path == runtime / name) == (len(name) < 100)
        assert stat.S_IMODE(runtime.lstat().st_mode) == 0o700
        assert Peer(server.path).ask("ping")["ok"] is True
        server.close()


def test_a_private_directory_of_a_killed_worker_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime_directory(monkeypatch) as runtime:
        plant(runtime, "open directory")
        left = sockets.private_socket_path(runtime / "localtune-1.sock")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(left))
        server = ControlServer(runtime / "localtune-2.sock", Controls(), dict)
        assert not left.parent.exists()
        assert server.path.exists()
        server.close()


def pending(place: Place, *names: str) -> None:
    wait_for(lambda: place.controls.pending == names, 20, f"{names or 'nothing'} to be pending")


def test_pending_commands_are_visible_until_they_are_done(place: Place) -> None:
    peer = Peer(place.path)
    for number, name in enumerate(("checkpoint", "pause", "generate", "pause")):
        peer.send(name, str(number))
    wait_for(lambda: place.controls.waiting_count == 4, 20, "the commands")
    pending(place, "pause", "checkpoint")
    assert place.next().request.command == "checkpoint"
    pending(place, "pause", "checkpoint")  # a checkpoint is in progress
    place.controls.done()
    pending(place, "pause")
    peer.send("resume", "resume")
    pending(place)
    assert [command.request.command for command in place.controls.waiting()] == ["pause", "generate", "pause", "resume"]


def test_anyone_can_withdraw_pending_commands(place: Place) -> None:
    asking, taking = Peer(place.path), Peer(place.path)
    asking.send("pause", "a")
    asking.send("checkpoint", "b")
    pending(place, "pause", "checkpoint")
    assert taking.ask("withdraw", "w", what="pause") == {"id": "w", "ok": True, "withdrawn": ["pause"]}
    refused = {"ok": False, "error": "It was taken back.", "hint": "", "withdrawn": True}
    assert asking.read() == {"id": "a", **refused}
    assert taking.ask("withdraw", "w") == {"id": "w", "ok": True, "withdrawn": ["checkpoint"]}
    assert asking.read() == {"id": "b", **refused}
    assert taking.ask("withdraw", "w") == {"id": "w", "ok": True, "withdrawn": []}
    # Withdrawals that had an effect are still to be recorded, and are answered already.
    withdrawn = [(command.taken_back, command.answered) for command in place.controls.waiting()]
    assert withdrawn == [(("pause",), True), (("checkpoint",), True)]


def test_a_stop_can_be_withdrawn_unless_it_is_a_signal_or_under_way(place: Place) -> None:
    peer = Peer(place.path)
    peer.send("stop", "s", now=True)
    pending(place, "stop")
    peer.send("withdraw", "w", what="stop")
    answers = {answer["id"]: answer for answer in (peer.read(), peer.read())}
    assert (answers["w"]["withdrawn"], answers["s"]["withdrawn"]) == (["stop"], True)
    place.controls.check_stop()
    place.controls.request_stop("SIGTERM")
    assert "asked for by SIGTERM" in peer.ask("withdraw", "w", what="stop")["error"]
    assert peer.ask("withdraw", "w")["withdrawn"] == []
    with pytest.raises(StopRequested) as caught:
        place.controls.check_stop()
    assert not caught.value.now, "that was asked for by the one that was taken back"
    assert peer.ask("withdraw", "w", what="stop")["error"] == "The run is stopping already."
