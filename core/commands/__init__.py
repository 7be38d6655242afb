"""The commands of ``localtune-tui``, one module each: ``add_arguments(parser)`` and ``run(args) -> int``.

A command module imports nothing heavy at its top; ``run`` imports the libraries that it needs.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import tomli

#: The commands by group, in the order of the help: name to its module and its one-line description.
GROUPS: dict[str, dict[str, tuple[str, str]]] = tomli.loads(
    Path(__file__).with_name("groups.toml").read_text(encoding="utf-8")
)
#: All commands: name to module and description.
COMMANDS: dict[str, tuple[str, str]] = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def load_command(name: str) -> ModuleType:
    """The module of a command in :data:`COMMANDS`."""
    return importlib.import_module(f"core.commands.{COMMANDS[name][0]}")
