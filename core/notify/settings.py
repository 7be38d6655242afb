"""Notification settings: ``notify.toml`` next to the keymap.

They are the user's and the machine's, not a run's: a configuration may come from somebody else, and must not be able to
run a command; and a run's hash has nothing to do with who is told of its end. What is changed holds at once, for runs
that are on as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli

from core import paths
from core.errors import UserError
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
