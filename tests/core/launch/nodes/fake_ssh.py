"""A stand-in for ``ssh`` in ``PATH``: a machine is a file of shell lines that set up its surroundings, or end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SSH = """#!/bin/sh
# What stands before the host are options, what stands behind it the command, which a shell runs there.
printf '%s\\n' "$*" >> "$FAKE_SSH/asked"
while [ "$1" != "--" ]; do shift; done
host=$2; shift 2
prefix=
. "$FAKE_SSH/$host.machine"
# As with a real one, what runs there does not die with ssh; it only sees its standard input end.
exec 3<&0
setsid $prefix sh -c "$*" <&3 3<&- &
there=$!
exec 3<&- 0< /dev/null
wait "$there"
"""


class FakeSsh:
    """Machines that the fake ``ssh`` reaches.

    Args:
        directory: Its own directory.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        programs = directory / "bin"
        programs.mkdir(parents=True)
        (programs / "ssh").write_text(_SSH)
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_SSH", str(directory))

    def machine(self, name: str, lines: str = "") -> None:
        """Add a machine; ``lines`` are run by the shell before each command there."""
        (self._directory / f"{name}.machine").write_text(lines + "\n")

    @property
    def asked(self) -> list[str]:
        """The command lines of ``ssh``, without its name."""
        path = self._directory / "asked"
        return path.read_text().splitlines() if path.exists() else []
