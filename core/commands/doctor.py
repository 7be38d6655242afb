"""``doctor``: the abilities of this machine, and problems that a run would meet on it."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING

from core.commands.common import EXIT_ERROR, add_json_flag, emit, say

if TYPE_CHECKING:
    from core.commands.checks import Finding

_LABELS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--quick", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run all checks and print the findings; the exit code is 0 unless something fails."""
    findings = examine(quick=args.quick)
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    if args.json:
        emit({"ok": not failed, "findings": [finding.to_dict() for finding in findings]})
    else:
        say(*render(findings, shutil.get_terminal_size((100, 24)).columns), "", _summary(failed, warned))
    return EXIT_ERROR if failed else 0


def examine(*, quick: bool = False) -> list[Finding]:
    """All findings, the basics first."""
    from core.commands.checks import gpu, meters, security, software, system, terminal
    from core.hardware.drivers import installed_build

    driver, build = gpu.check_gpu(), installed_build()
    return [
        software.check_python(),
        software.check_libraries(),
        security.check_holes(),
        security.check_walls(),
        security.check_hub(),
        system.check_memory(),
        system.check_home(),
        system.check_socket(),
        system.check_logout(),
        *system.check_wsl(),
        *meters.check_platform(),
        *terminal.check_terminal(),
        meters.check_cpu_meters(),
        *driver.findings,
        *meters.check_amd(build),
        *gpu.check_cuda(driver, build),
        *([] if quick else software.check_torch(driver)),
    ]


def render(findings: list[Finding], width: int) -> list[str]:
    """Aligned lines: status, name, finding, and below it the remedy."""
    column = max((len(finding.name) for finding in findings), default=0)
    indent = " " * (column + 8)
    room = max(min(width, 120) - len(indent), 30)
    lines = []
    for finding in findings:
        first, *rest = textwrap.wrap(finding.what, room, break_on_hyphens=False) or [""]
        lines.append(f"{_LABELS[finding.status]:<4}  {finding.name:<{column}}  {first}")
        lines += [indent + line for line in rest]
        if finding.hint:
            hint = textwrap.wrap(f"-> {finding.hint}", room, subsequent_indent="   ", break_on_hyphens=False)
            lines += [indent + line for line in hint]
    return lines


def _summary(failed: int, warned: int) -> str:
    from core.units import counted

    warnings = counted(warned, "warning")
    if failed:
        return f"{failed} thing{' fails' if failed == 1 else 's fail'}, {warnings}."
    return f"Nothing fails, {warnings}." if warned else "All is well."
