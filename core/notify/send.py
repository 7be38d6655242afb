"""Sending of notices: in a process of their own, so that whoever tells waits for nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomli

from core import paths
from core.errors import UserError
from core.helper import describe_end, start_detached
from core.small_files import read_small
from core.text import one_line

_LIMIT = 1 << 16
#: Placeholders in arguments of the command, with the variables of its environment that hold the same.
PLACEHOLDERS = {f"{{{name}}}": f"LOCALTUNE_{name.upper()}" for name in ("run", "state", "reason")}
#: Arguments that end the options of many programs. What follows may be an option's value all the same: ``sh -c --``.
_ENDS_OF_OPTIONS = ("--", "-")


@dataclass(frozen=True)
class NotifySettings:
    """Ways in which the user wants notices; all are off by default."""

    command: tuple[str, ...] = ()
    """A program and its arguments, of which ``{run}``, ``{state}`` and ``{reason}`` are replaced; none where empty."""
    bell: bool = False
    """Whether the app rings the terminal's bell."""
    desktop: bool = False
    """Whether the desktop shows it: by ``notify-send``, and by the app's terminal."""

    @property
    def sends(self) -> bool:
        """Whether anything is done outside of the app."""
        return bool(self.command) or self.desktop


def notify_path() -> Path:
    """The file of the settings."""
    return paths.config_dir() / "notify.toml"


def load_notify_settings() -> NotifySettings:
    """Read the settings; all is off where there is no file.

    Raises:
        UserError: If the file cannot be read, or a value makes no sense.
    """
    path = notify_path()
    try:
        data = tomli.loads(read_small(path, _LIMIT).decode("utf-8"))
        return _check(data)
    except FileNotFoundError:
        return NotifySettings()
    except (OSError, ValueError, RecursionError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{path}: {one_line(cause, 200)}.", "docs/running.md has an example.") from error


def _check(data: Mapping[str, object]) -> NotifySettings:
    for key in data:
        if key not in NotifySettings.__dataclass_fields__:
            raise ValueError(f"there is no setting {one_line(key, 40)}; there are command, bell and desktop")
    command, bell, desktop = data.get("command", []), data.get("bell", False), data.get("desktop", False)
    for name, value in (("bell", bell), ("desktop", desktop)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false")
    if not isinstance(command, list) or not all(isinstance(part, str) and "\0" not in part for part in command):
        raise ValueError('command must be a list of a program and its arguments, such as ["notify-me", "{state}"]')
    for number in range(len(command)):
        _check_placeholders(command, number)
    return NotifySettings(tuple(command), bool(bell), bool(desktop))


def _check_placeholders(command: list[str], number: int) -> None:
    """Refuse a placeholder where what stands for it could be run: it may hold text of others.

    What a program does with an argument is not known here, whatever its name. But a text that is put together from
    pieces has a syntax, and the value of an option may be code (``sh -c``), a pattern, or a file to read
    (``curl -d @file``). An argument of its own that follows none is taken as it is.
    """
    part = command[number]
    mark = next((mark for mark in PLACEHOLDERS if mark in part), None)
    if mark is None:
        return
    instead = f'take "${PLACEHOLDERS[mark]}" in a script, as in ["sh", "-c", "… \\"${PLACEHOLDERS[mark]}\\""]'
    if part != mark:
        raise ValueError(f"{mark} must be an argument of its own; within other text, {instead}")
    before = next((other for other in reversed(command[:number]) if other not in _ENDS_OF_OPTIONS), None)
    if before is None:
        raise ValueError(f"{mark} cannot be the program; {instead}")
    if before.startswith(("-", "+")) and "=" not in before:
        raise ValueError(f"{mark} cannot be the value of {one_line(before, 40)}, which may run it; {instead}")


#: The longest text of a notice, in characters.
_LONGEST = 300


@dataclass(frozen=True)
class Notice:
    """A notice to the user of something that has happened to a run or the queue.

    Args:
        state: A run's state (``finished``, ``stopped``, ``failed``, ``paused``), an entry's (``failed``, ``skipped``),
            or ``queue_empty``.
        reason: Why, as a sentence; may be empty.
        run: Id of the run; empty where it is about none.
    """

    state: str
    reason: str = ""
    run: str = ""

    @property
    def title(self) -> str:
        """A line for people: ``20261127-004446-faq: finished``."""
        state = one_line(self.state, 40).replace("_", " ")
        return f"{one_line(self.run, 120)}: {state}" if self.run else state

    @property
    def values(self) -> Mapping[str, str]:
        """Placeholder to its value, safe to show."""
        return {
            "run": one_line(self.run, _LONGEST),
            "state": one_line(self.state, 40),
            "reason": one_line(self.reason, _LONGEST),
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables for a program."""
        return {f"LOCALTUNE_{name.upper()}": value for name, value in self.values.items()}


#: Seconds that a command may take.
LONGEST = 20.0
#: Characters that a shell acts on, in their full width: ssh, for one, hands all its arguments to a shell.
_FULL_WIDTH = {ord(sign): ord(sign) + 0xFEE0 for sign in "!\"#$&'()*;<>?[\\]^`{|}~"}
#: At the beginning of an argument: of an option, and of a file to read.
_OPENING = re.compile(r"^[-+@]")
_children: list[subprocess.Popen[bytes]] = []


def notify(notice: Notice) -> None:
    """Tell the user as ``notify.toml`` says; returns at once, and raises nothing.

    What goes wrong is written to standard error, which is the log of the run or of the queue's runner.
    """
    try:
        if not load_notify_settings().sends:
            return
        arguments = json.dumps([notice.state, notice.reason, notice.run])
        child = start_detached(
            [sys.executable, "-m", "core.notify", arguments],
            log=2,
            cwd=paths.home(),
            environment=os.environ,
        )
    except (UserError, OSError) as error:
        sys.stderr.write(f"notice not sent: {one_line(str(error), 400)}\n")
        return
    _children[:] = [*(other for other in _children if other.poll() is None), child]


def send(notice: Notice, settings: NotifySettings, timeout: float = LONGEST) -> list[str]:
    """Run the user's command, and ``notify-send``; waits for both.

    Args:
        notice: What has happened.
        settings: How the user wants to be told.
        timeout: Seconds that each may take; it is then killed with what it has started.

    Returns:
        What went wrong, as sentences; empty where all went well.
    """
    problems = []
    if settings.command:
        problems += _run("the command of notify.toml", fill_in(settings.command, notice), notice, timeout)
    if settings.desktop and (program := _desktop_program()) is not None:
        command = [program, "--app-name=localtune-tui", "--", notice.title, notice.values["reason"]]
        problems += _run("notify-send", command, notice, timeout)
    return problems


def fill_in(command: Sequence[str], notice: Notice) -> list[str]:
    """The command with the arguments that are placeholders replaced, by text that no shell and no option acts on.

    The variables of the environment hold the text as it is.
    """
    values = {f"{{{name}}}": _plain(value) for name, value in notice.values.items()}
    return [values.get(part, part) for part in command]


def _plain(value: str) -> str:
    return _OPENING.sub(lambda sign: chr(ord(sign[0]) + 0xFEE0), value.translate(_FULL_WIDTH))


def _desktop_program() -> str | None:
    """``notify-send``, where it is and a desktop is there to show anything."""
    has_desktop = any(os.environ.get(name) for name in ("DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY"))
    return shutil.which("notify-send") if has_desktop else None


def _run(what: str, command: Sequence[str], notice: Notice, timeout: float) -> list[str]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **notice.environment},
        )
    except OSError as error:
        return [f"{what} cannot be started: {one_line(command[0], 100)}: {error.strerror}."]
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return [f"{what} has not ended in {timeout:g} s and was killed."]
    if process.returncode:
        detail = one_line(said[-2000:].decode("utf-8", errors="replace").strip(), 300)
        return [f"{what} {describe_end(process.returncode)}{f': {detail}' if detail else ''}."]
    return []
