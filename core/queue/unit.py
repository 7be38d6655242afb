"""systemd user unit of the queue's runner, so that the queue goes on after a reboot."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.helper import finding_core

UNIT = "localtune-queue.service"


def unit_path() -> Path:
    """The unit's file, in ``$XDG_CONFIG_HOME/systemd/user``, else in ``~/.config/systemd/user``."""
    return paths.config_dir().parent / "systemd" / "user" / UNIT


def unit_text() -> str:
    """The unit for this interpreter, this copy of the program and this home.

    ``KillMode=process``: stopping the unit ends the runner, and never the run. ``OOMPolicy=continue``: an OOM kill of
    the run does not end the runner.
    """
    environment = finding_core({})
    lines = [f"Environment={_quoted(f'{name}={environment[name]}')}" for name in ("PYTHONSAFEPATH", "PYTHONPATH")]
    lines.append(f"Environment={_quoted(f'LOCALTUNE_HOME={paths.home()}')}")
    if config_home := os.environ.get("XDG_CONFIG_HOME"):
        lines.append(f"Environment={_quoted(f'XDG_CONFIG_HOME={config_home}')}")
    # systemd expands variables only in commands.
    program = " ".join(_quoted(word).replace("$", "$$") for word in (sys.executable, "-m", "core.queue"))
    return "\n".join(
        [
            "[Unit]",
            "Description=Runner of localtune-tui's queue of training runs",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={program}",
            *lines,
            "KillMode=process",
            "OOMPolicy=continue",
            "Restart=on-failure",
            "RestartSec=30",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def unit_commands() -> list[str]:
    """Commands that the user runs once, so that the unit starts at boot without a login."""
    return [
        "systemctl --user daemon-reload",
        f"systemctl --user enable {UNIT}",
        f"loginctl enable-linger {getpass.getuser()}",
    ]


def write_unit() -> Path:
    """Write the unit, replacing an older one.

    Raises:
        UserError: If it cannot be written.
    """
    path = unit_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, unit_text())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", "Make room or fix its permissions.") from error
    return path


def _quoted(text: str) -> str:
    """A word of a unit file in quotes, with its special characters escaped.

    Raises:
        UserError: If it has a line break, which a unit cannot hold.
    """
    if "\n" in text or "\r" in text:
        raise UserError(f"{text!r} has a line break, which a unit file cannot hold.", "Rename the directory.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
