"""Report of the self-test: the table, the fields for ``--json``, and a file for bug reports."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from core import __version__, paths
from core.atomic import write_atomic
from core.directories import disk_error
from core.errors import UserError
from core.redact import redact
from core.runs.record.state import hostname
from core.text import one_line
from core.units import format_bytes, format_duration

Result = Literal["pass", "fail", "not applicable"]
RESULTS: tuple[Result, ...] = ("pass", "fail", "not applicable")


@dataclass(frozen=True)
class Subject:
    """A check of the self-test.

    Args:
        name: Its name in the report.
        title: Its title.
        proves: The proven property, as a clause.
        deadline: Seconds after which it is ended and has failed; ample for a slow machine.
        needs_model: Whether it trains the starter model.
    """

    name: str
    title: str
    proves: str
    deadline: float
    needs_model: bool = True


#: In order of execution: the device first, as the progress of the others shows its name.
SUBJECTS: tuple[Subject, ...] = (
    Subject("driver", "driver", "the driver's readings are of the card that torch computes on", 120, needs_model=False),
    Subject("fast_paths", "fast paths", "each fast path computes what the plain path computes", 300, needs_model=False),
    Subject("training", "training", "twenty steps learn as they did where the shipped losses were recorded", 600),
    Subject("memory", "memory", "a run takes the memory that was predicted", 600),
    Subject("resume", "resume", "a run that is interrupted and resumed ends as one that was not", 600),
    Subject("out_of_memory", "out of memory", "a run survives running out of memory, forward and backward", 600),
    Subject("waits", "waits", "the CPU waits for the card at most three or four times a step", 300),
    Subject("speed", "speed", "how fast it trains, by what the device could do", 600),
)


@dataclass(frozen=True)
class Check:
    """The result of a check; ``detail`` is a sentence or two."""

    name: str
    result: Result
    detail: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The check as fields for ``--json``."""
        return {"name": self.name, "result": self.result, "detail": self.detail, "seconds": round(self.seconds, 1)}


def subject(name: str) -> Subject:
    """The check with a name.

    Raises:
        KeyError: If there is none.
    """
    return {item.name: item for item in SUBJECTS}[name]


#: Libraries whose versions are reported.
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "triton", "nvidia-ml-py")
#: Environment variables that affect torch; their values are reported.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)
LABELS: Mapping[Result, str] = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a"}
_WIDEST = 120
#: An absolute path, also within quotes or below a replaced directory (NUL). A slash after a letter or a digit belongs
#: to a word, such as tokens/s.
_PATH = re.compile(r"(?:\0|(?<![\w.:/<>~\0])~?(?=/))(?:/[^\s/'\",:;()<>\0]+)*/?")
_UUID = re.compile(r"\b(GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
#: Shortest name that is replaced: shorter ones occur by chance.
_SHORTEST_NAME = 3
#: Common names that identify nobody.
_NO_NAMES = ("root", "localhost", "user")


@dataclass(frozen=True)
class Report:
    """The results of a self-test.

    Args:
        device: Facts about the device: ``kind``, ``name`` and others.
        checks: The results.
        moment: Local time of its end.
    """

    device: dict[str, Any]
    checks: tuple[Check, ...]
    moment: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def passed(self) -> bool:
        """True if all checks that apply here have passed."""
        return all(check.result != "fail" for check in self.checks)

    @property
    def seconds(self) -> float:
        """Duration of all checks."""
        return sum(check.seconds for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as fields for ``--json``."""
        checks = [check.to_dict() for check in self.checks]
        return {"device": self.device, "checks": checks, "passed": self.passed}

    def summary(self) -> str:
        """The outcome in a sentence."""
        failed = sum(check.result == "fail" for check in self.checks)
        made = sum(check.result != "not applicable" for check in self.checks)
        took = format_duration(self.seconds)
        if failed:
            return f"{failed} of {made} checks failed, after {took}."
        return f"Passed: all {made} of {len(self.checks)} checks that apply here, after {took}."


def table(checks: Sequence[Check], width: int) -> list[str]:
    """Aligned lines: result, check, seconds and detail, wrapped."""
    column = max((len(subject(check.name).title) for check in checks), default=0)
    indent = " " * (column + 15)
    room = max(min(width, _WIDEST) - len(indent), 24)
    lines = []
    for check in checks:
        first, *rest = textwrap.wrap(check.detail, room, break_on_hyphens=False) or [""]
        title = subject(check.name).title
        lines.append(f"{LABELS[check.result]:<4}  {title:<{column}}  {f'{check.seconds:.0f} s':>5}  {first}".rstrip())
        lines += [indent + line for line in rest]
    return lines


def device_line(device: Mapping[str, Any]) -> str:
    """The device in a line: its name and its known properties."""
    words = {
        "capability": "compute {}",
        "architecture": "{}",
        "memory_bytes": format_bytes(float(device.get("memory_bytes") or 0)),
        "dtype": "{}",
        "driver": "driver {}",
        "cuda": "torch for CUDA {}",
        "rocm": "torch for ROCm {}",
    }
    known = [text.format(device[name]) for name, text in words.items() if device.get(name)]
    return one_line(", ".join([str(device.get("name") or "unknown device"), *known]), 300)


def report_text(report: Report) -> str:
    """The report as a text for others: versions, device, system and results, without names and paths."""
    lines = [
        f"localtune-tui {__version__} self-test, {report.moment:%Y-%m-%d}",
        f"device     {device_line(report.device)}",
        f"system     {system_line()}",
        f"libraries  {', '.join(_versions())}",
    ]
    settings = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if settings:
        lines.append(f"settings   {', '.join(settings)}")
    # Before wrapping: a name may contain a space.
    lines = [without_names(line) for line in lines]
    checks = [replace(check, detail=without_names(check.detail)) for check in report.checks]
    return "\n".join([*lines, "", *table(checks, 100), "", report.summary()]) + "\n"


def write_report(report: Report, path: Path | None = None) -> Path:
    """Write the report for others.

    Args:
        report: The report.
        path: The file; by default ``report.txt`` in the home, which is overwritten.

    Returns:
        The file.

    Raises:
        UserError: If it cannot be written.
    """
    place = path or paths.make_private_dir(paths.selftest_dir()) / "report.txt"
    try:
        write_atomic(place, report_text(report))
    except OSError as error:
        raise disk_error(place.parent, error) if path is None else _elsewhere(place.parent, error) from error
    return place


def refuse_place(path: Path) -> None:
    """Refuse a path where no report can be written, before the self-test starts.

    Args:
        path: The file of the report.

    Raises:
        UserError: If it is a directory or a device, or its directory cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file.", "Name a file with --report.")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _elsewhere(path.parent, error) from error


def _elsewhere(directory: Path, error: OSError) -> UserError:
    """The error for a report that cannot be written to the path of ``--report``."""
    return UserError(
        f"The report cannot be written to {one_line(str(directory), 300)}: {error.strerror}.",
        "Name another file with --report.",
    )


def system_line() -> str:
    """The system: kernel, architecture, distribution, WSL or container, and Python."""
    kernel = platform.release()
    where = "WSL" if "microsoft" in kernel.lower() else ""
    if not where and (os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")):
        where = "container"
    try:
        distribution = str(platform.freedesktop_os_release().get("PRETTY_NAME", ""))
    except OSError:
        distribution = ""
    parts = [f"Linux {kernel} {platform.machine()}", distribution, where, f"Python {platform.python_version()}"]
    return one_line(", ".join(filter(None, parts)), 300)


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def without_names(text: str) -> str:
    """A text without private facts: paths, the names of user and machine, a card's UUID, and secrets."""
    for place in sorted(_places(), key=len, reverse=True):
        text = text.replace(place, "\0")
    text = _PATH.sub(_hidden, _UUID.sub(r"\1-<number>", redact(text)))
    for name, sign in ((_user(), "<user>"), (hostname(), "<machine>"), (hostname().partition(".")[0], "<machine>")):
        if len(name) >= _SHORTEST_NAME and name not in _NO_NAMES:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", sign, text)
    return text


def _hidden(found: re.Match[str]) -> str:
    # A lone slash is a division sign.
    return "<path>" if len(found[0].rstrip("/")) else found[0]


def _places() -> set[str]:
    """Directories that messages may name, except the root."""
    found = [paths.working_directory()]
    for ask in (Path.home, paths.home):
        with contextlib.suppress(RuntimeError, UserError):  # without a home, nothing in it can be named
            found.append(ask())
    return {str(place) for place in found if len(place.parts) > 1}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
