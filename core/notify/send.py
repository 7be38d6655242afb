"""Sending of notices, in a process of their own, so that the sender never waits."""

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
#: Placeholders in arguments of the command, and the environment variables with the same values.
PLACEHOLDERS = {f"{{{name}}}": f"LOCALTUNE_{name.upper()}" for name in ("run", "state", "reason")}
#: Arguments that end the options of many programs; the next argument may still be an option's value (``sh -c --``).
_ENDS_OF_OPTIONS = ("--", "-")


@dataclass(frozen=True)
class NotifySettings:
    """The user's settings for notices; all are off by default."""

    command: tuple[str, ...] = ()
    """A program and its arguments, in which ``{run}``, ``{state}`` and ``{reason}`` are replaced; may be empty."""
    bell: bool = False
    """True if the app rings the terminal's bell."""
    desktop: bool = False
    """True if the desktop shows notices, by ``notify-send`` and by the app's terminal."""

    @property
    def sends(self) -> bool:
        """True if notices are sent outside of the app."""
        return bool(self.command) or self.desktop


def notify_path() -> Path:
    """The file of the settings."""
    return paths.config_dir() / "notify.toml"


def load_notify_settings() -> NotifySettings:
    """Read the settings; all are off without a file.

    Raises:
        UserError: If the file cannot be read, or a value is invalid.
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
    """Refuse a placeholder whose value could be executed: it may be untrusted text.

    The meaning of an argument depends on the program. A text that contains a placeholder has a syntax of its own, and
    an option's value may be code (``sh -c``), a pattern, or a file to read (``curl -d @file``). Only a placeholder that
    is a whole argument, and not an option's value, is safe.
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
    """A notice to the user about a run or the queue.

    Args:
        state: State of a run (``finished``, ``stopped``, ``failed``, ``paused``) or of an entry (``failed``,
            ``skipped``), or ``queue_empty``.
        reason: The reason, as a sentence; may be empty.
        run: Id of the run; empty without one.
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
        """Environment variables with these values."""
        return {f"LOCALTUNE_{name.upper()}": value for name, value in self.values.items()}


#: Seconds that a command may take.
LONGEST = 20.0
#: Characters with a meaning in a shell, to their full-width forms: ssh, for one, passes its arguments to a shell.
_FULL_WIDTH = {ord(sign): ord(sign) + 0xFEE0 for sign in "!\"#$&'()*;<>?[\\]^`{|}~"}
#: First character of an option, or of an argument that names a file to read.
_OPENING = re.compile(r"^[-+@]")
_children: list[subprocess.Popen[bytes]] = []


def notify(notice: Notice) -> None:
    """Send a notice by ``notify.toml``; returns at once, and never raises.

    Errors are written to standard error, the log of the run or of the queue's runner.
    """
    try:
        if not load_notify_settings().sends:
            return
        arguments = json.dumps([notice.state, notice.reason, notice.run])
        child = start_detached(
            [sys.executable, "-m", "core.notify", arguments], log=2, cwd=paths.home(), environment=os.environ
        )
    except (UserError, OSError) as error:
        sys.stderr.write(f"notice not sent: {one_line(str(error), 400)}\n")
        return
    _children[:] = [*(other for other in _children if other.poll() is None), child]


def send(notice: Notice, settings: NotifySettings, timeout: float = LONGEST) -> list[str]:
    """Run the user's command and ``notify-send``, and wait for both.

    Args:
        notice: The notice.
        settings: The user's settings.
        timeout: Seconds that each may take before it is killed with its child processes.

    Returns:
        Errors, as sentences.
    """
    problems = []
    if settings.command:
        problems += _run("the command of notify.toml", fill_in(settings.command, notice), notice, timeout)
    if settings.desktop and (program := _desktop_program()) is not None:
        command = [program, "--app-name=localtune-tui", "--", notice.title, notice.values["reason"]]
        problems += _run("notify-send", command, notice, timeout)
    return problems


def fill_in(command: Sequence[str], notice: Notice) -> list[str]:
    """The command with its placeholders replaced by text that has no meaning to shells and option parsers.

    The environment variables have the original text.
    """
    values = {f"{{{name}}}": _plain(value) for name, value in notice.values.items()}
    return [values.get(part, part) for part in command]


def _plain(value: str) -> str:
    return _OPENING.sub(lambda sign: chr(ord(sign[0]) + 0xFEE0), value.translate(_FULL_WIDTH))


def _desktop_program() -> str | None:
    """Path of ``notify-send``; None if it is not installed or there is no desktop."""
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
