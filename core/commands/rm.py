"""``rm RUN…``: move runs to the trash, or delete them, after their sizes have been shown and the user has agreed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.commands.common import (
    EXIT_ERROR,
    PROGRAM,
    RUN_HELP,
    add_json_flag,
    agrees,
    describe_state,
    do_for_each,
    emit,
    find_runs,
    note,
    say,
)
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.record.store import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="*", help=f"{RUN_HELP}; or several")
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--now", action="store_true")
    parser.add_argument("--yes", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Show the runs, ask, and delete them; the exit code is 1 if some are left, or the answer is no."""
    from core.directories import free_bytes
    from core.runs.catalog.removal import directory_size, refuse_removal, remove_run, trash_run
    from core.units import counted, format_bytes

    chosen = _choose(args.runs, failed=args.failed)
    for target in chosen:
        refuse_removal(target)
    sizes = {target.id: directory_size(target.path) for target in chosen}
    total = sum(sizes.values())
    width = max((len(target.id) for target in chosen), default=0)
    for target in chosen:
        note(f"{target.id:<{width}}  {format_bytes(sizes[target.id]):>8}  {describe_state(target.state())}")
    subject = f"{len(chosen)} runs" if len(chosen) != 1 else chosen[0].id
    question = f"Delete {subject} for good" if args.now else f"Move {subject} to the trash"
    question += f", {format_bytes(total)}?"
    if chosen and not args.yes and not agrees(question, "Add --yes to delete without a question."):
        note("Nothing deleted.")
        return EXIT_ERROR
    removed, left = do_for_each(chosen, remove_run if args.now else trash_run)
    freed = sum(sizes[target.id] for target in removed)
    if args.json:
        result: dict[str, Any] = {
            "removed": [{"run": target.id, "bytes": sizes[target.id]} for target in removed],
            "bytes": freed,
            "left": left,
            "trash": not args.now,
            "free_bytes": free_bytes(),
        }
        emit(result)
    elif removed:
        count = f"{counted(len(removed), 'run')}, {format_bytes(freed)}"
        say(f"Deleted {count}. {_room()}" if args.now else f"Moved to the trash: {count}. {_room()}")
    elif not chosen:
        say("No run has failed; nothing deleted.")
    return EXIT_ERROR if left else 0


def _room() -> str:
    """The free bytes of the disk, and how to get more."""
    from core.directories import free_bytes
    from core.runs.catalog.removal import list_trash
    from core.units import format_bytes

    trash = sum(item.size for item in list_trash())
    more = f" '{PROGRAM} trash empty' frees {format_bytes(trash)}." if trash else ""
    return f"Free on this disk: {format_bytes(free_bytes())}.{more}"


def _choose(names: list[str], *, failed: bool) -> list[Run]:
    """The named runs, each once; with ``--failed`` all failed runs too.

    Raises:
        UserError: If none is named, or a name is that of no run.
    """
    from core.runs.record.store import list_runs

    if not names and not failed:
        raise UserError("No run is named.", f"'{PROGRAM} runs' lists them; --failed means all that have failed.")
    found = find_runs(names)
    if failed:
        found += [known for known in list_runs() if known.state().state == "failed"]
    return list({target.path.resolve(): target for target in found}.values())
