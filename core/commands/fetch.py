"""``fetch ENTRY``: the only command that downloads from a hub, and only the given entry."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from core.commands.common import add_json_flag, emit, note, say
from core.commands.live_line import ProgressLine

if TYPE_CHECKING:
    from core.hub.job import FetchPlan
    from core.hub_uri import HubEntry
    from core.jobs.job import JobProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("entry", metavar="ENTRY")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Download an entry; files that are here already are not downloaded again.

    Raises:
        UserError: If the entry or the address of the hub is invalid, or it cannot be fetched.
    """
    from core.hub.job import fetch_job, hub_endpoint, hub_host
    from core.hub_uri import parse_entry

    entry = parse_entry(args.entry)
    hub_endpoint()
    note(f"asking {hub_host()} for {entry}")
    proposed: list[FetchPlan] = []
    with ProgressLine("What has come is kept; the same command goes on.") as line:

        def confirm(plan: FetchPlan) -> bool:
            line.message(_size_words(plan))
            proposed.append(plan)
            return True

        plan = fetch_job(entry, confirm).run(lambda progress: line.show(_progress_words(progress)))
    if args.json:
        emit(describe(entry, plan, proposed))
        return 0
    say(*_render(entry, plan, proposed))
    return 0


def describe(entry: HubEntry, plan: FetchPlan, proposed: list[FetchPlan]) -> dict[str, Any]:
    """A fetched entry, for ``--json``."""
    values = {name: value for name, value in dataclasses.asdict(plan).items() if name != "remaining"}
    return {"kind": entry.kind, **values, "fetched_bytes": proposed[0].remaining if proposed else 0}


def _size_words(plan: FetchPlan) -> str:
    from core.units import format_bytes

    files = "1 file" if plan.files == 1 else f"{plan.files} files"
    left = "" if plan.remaining == plan.bytes else f", {format_bytes(plan.remaining)} of them still to come"
    return f"{files}, {format_bytes(plan.bytes)}{left}. {plan.reason}"


def _render(entry: HubEntry, plan: FetchPlan, proposed: list[FetchPlan]) -> list[str]:
    from core.units import format_bytes

    came = f"{format_bytes(proposed[0].remaining)} downloaded" if proposed else "nothing downloaded, it was here"
    lines = [
        f"{'directory':<10} {plan.directory}",
        f"{'commit':<10} {plan.commit}",
        f"{'files':<10} {plan.files}, {format_bytes(plan.bytes)} ({came})",
    ]
    if entry.kind == "dataset":
        return [*lines, f"{'taken':<10} {plan.reason}", f'{"use it as":<10} data.train = "{entry}"']
    return [*lines, f'{"use it as":<10} model.base = "{entry.repository}"']


def _progress_words(progress: JobProgress) -> str:
    from core.text import one_line
    from core.units import format_bytes

    text = one_line(progress.activity, 60)
    if progress.done is not None and progress.total:
        size = f"{format_bytes(progress.done)} of {format_bytes(progress.total)}"
        text = f"{progress.done / progress.total:4.0%}  {size}  {text}"
    return text
