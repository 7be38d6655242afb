"""Security checks: versions with known vulnerabilities, walls around readers, packages that fetch code, and access to
a hub.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata

from core.commands.checks import Finding
from core.commands.checks.software import reinstall, satisfies
from core.errors import UserError
from core.sandbox.limits import VARIABLE, Walls, walls
from core.sandbox.pool import sandboxed

#: Library, first fixed version, CVE number and effect. Only vulnerabilities that a run could trigger, by loading a file
#: or rendering a template.
HOLES: tuple[tuple[str, str, str, str], ...] = (
    ("transformers", "5.3.0", "CVE-2026-4372", "a model's config.json can run code"),
    ("torch", "2.10.0", "CVE-2026-24747", "a checkpoint can corrupt memory when it is loaded"),
    ("jinja2", "3.1.6", "CVE-2025-27516", "a chat template can break out of its sandbox"),
    ("sentencepiece", "0.2.1", "CVE-2026-1260", "a tokenizer's file can corrupt memory"),
)
#: Walls by the fields of :class:`~core.sandbox.limits.Walls`: the name and its requirements.
_WALLS = {
    "files": ("Landlock", "Landlock needs Linux 5.13 or later, with landlock in the kernel's list of modules (lsm=)."),
    "calls": ("seccomp", "The filter needs Linux on x86_64 or aarch64, and a container that allows filters."),
}
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_holes() -> Finding:
    """Check the installed versions for known vulnerabilities."""
    open_ones = []
    for name, fixed, number, what in HOLES:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # check_libraries reports it
        if not satisfies(found, f">={fixed}"):
            open_ones.append(f"{name} {found}: {what} ({number}, closed in {fixed})")
    if open_ones:
        hint = f"Load nothing from strangers until then. {reinstall()}"
        return Finding("security", "fail", f"{'; '.join(open_ones)}.", hint)
    return Finding("security", "ok", f"none of the {len(HOLES)} known holes that a run could meet")


def check_walls() -> Finding:
    """Check the walls around the processes that read foreign files, by starting one."""
    try:
        found = sandboxed(walls, "The sandbox")()
    except UserError as error:
        return Finding("sandbox", "fail", error.message, "Please report it.")
    return walls_finding(found)


def walls_finding(found: Walls) -> Finding:
    """The finding for the walls around a process."""
    if not found.files and not found.calls:
        what = "readers of foreign files reach no other files (Landlock), no network and no programs (seccomp)"
        return Finding("sandbox", "ok", what)
    said = [f"{_WALLS[name][0]}: {reason}" for name, reason in asdict(found).items() if reason]
    held = [words for name, words in _WALLS.items() if not getattr(found, name)]
    beside = f", and by {held[0][0]}" if held else ""
    hint = (
        f"Unset {VARIABLE}, unless something fails with the walls."
        if VARIABLE in "".join(said)
        else " ".join(_WALLS[name][1] for name, reason in asdict(found).items() if reason)
    )
    what = f"Readers of foreign files are held by limits on memory and time{beside}. Not by {'; '.join(said)}."
    return Finding("sandbox", "warn", what, hint)


def check_hub(environment: Mapping[str, str] = os.environ) -> Finding:
    """Check for network access: the package kernels, and hub libraries that are not set to be offline."""
    offline = [name for name in _OFFLINE if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if importlib.util.find_spec("kernels") is not None:
        what = "The package kernels is installed: with it, importing bitsandbytes fetches native code from a hub."
        hint = "Runs here do not load it; 'pip uninstall kernels' keeps other programs from doing so."
        return Finding("hub", "warn", what, hint)
    if offline:
        return Finding("hub", "ok", f"nothing is fetched from a hub ({', '.join(offline)} set)")
    return Finding("hub", "ok", "runs are offline; HF_HUB_OFFLINE is not set for other programs")
