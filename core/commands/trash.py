"""``trash list|restore|empty``: the runs in the trash, moved back or deleted for good."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_ERROR, PROGRAM, add_json_flag, agrees, do_for_each, emit, note, say
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.catalog.removal import TrashedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "restore", "empty"), metavar="list|restore|empty"
    )
    parser.add_argument("runs", metavar="ID", nargs="*")
    parser.add_argument("--yes", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the action; the exit code is 1 if some of it failed, or the answer is no.

    Raises:
        UserError: If a run is not in the trash, or none is named to be restored.
    """
    from core.runs.catalog.removal import find_trashed, list_trash

    if args.action == "restore" and not args.runs:
        raise UserError("No run is named.", f"'{PROGRAM} trash list' lists them.")
    chosen = list({item.path: item for item in map(find_trashed, args.runs)}.values()) if args.runs else list_trash()
    if args.action == "restore":
        return _restore(chosen, as_json=args.json)
    sizes = [item.size for item in chosen]
    if args.action == "list":
        return _list(chosen, sizes, as_json=args.json)
    return _empty(chosen, sizes, is_whole=not args.runs, yes=args.yes, as_json=args.json)


def describe(item: TrashedRun, size: int) -> dict[str, Any]:
    """A run in the trash: ``run``, ``deleted`` (Unix seconds), ``bytes`` and ``path``."""
    return {"run": item.id, "deleted": item.deleted or None, "bytes": size, "path": str(item.path)}


def _list(chosen: list[TrashedRun], sizes: list[int], *, as_json: bool) -> int:
    from core.directories import free_bytes
    from core.text import one_line
    from core.units import format_bytes, format_moment

    if as_json:
        runs = [describe(item, size) for item, size in zip(chosen, sizes, strict=True)]
        emit({"runs": runs, "bytes": sum(sizes), "free_bytes": free_bytes()})
        return 0
    width = max((len(one_line(item.id, 60)) for item in chosen), default=0)
    for item, size in zip(chosen, sizes, strict=True):
        when = format_moment(item.deleted, "%Y-%m-%d %H:%M") if item.deleted else "–"
        say(f"{one_line(item.id, 60):<{width}}  {format_bytes(size):>8}  deleted {when}")
    total = f"{format_bytes(sum(sizes))} in the trash" if chosen else "The trash is empty"
    note(f"{total}. Free on this disk: {format_bytes(free_bytes())}.")
    return 0


def _restore(chosen: list[TrashedRun], *, as_json: bool) -> int:
    from core.runs.catalog.removal import restore_run

    restored: list[str] = []
    _, left = do_for_each(chosen, lambda item: restored.append(restore_run(item).id))
    if as_json:
        emit({"restored": restored, "left": left})
    elif restored:
        say(f"Restored {', '.join(restored)}.")
    return EXIT_ERROR if left else 0


def _empty(chosen: list[TrashedRun], sizes: list[int], *, is_whole: bool, yes: bool, as_json: bool) -> int:
    from core.directories import free_bytes
    from core.runs.catalog.removal import remove_trashed, sweep_trash
    from core.units import counted, format_bytes

    question = f"Delete {counted(len(chosen), 'run')} for good, {format_bytes(sum(sizes))}?"
    if chosen and not yes and not agrees(question, "Add --yes to delete without a question."):
        note("Nothing deleted.")
        return EXIT_ERROR
    removed, left = do_for_each(chosen, remove_trashed)
    freed = sum(size for item, size in zip(chosen, sizes, strict=True) if item in removed)
    if is_whole:
        sweep_trash()
    if as_json:
        ids = [item.id for item in removed]
        emit({"removed": ids, "bytes": freed, "left": left, "free_bytes": free_bytes()})
    else:
        said = f"Deleted {counted(len(removed), 'run')}, {format_bytes(freed)}"
        say(f"{said if chosen else 'The trash is empty'}. Free on this disk: {format_bytes(free_bytes())}.")
    return EXIT_ERROR if left else 0
