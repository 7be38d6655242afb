"""``import FILE``: another tool's configuration converted to ours, with a report on every key."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import (
    EXIT_ERROR,
    PROGRAM,
    add_json_flag,
    emit,
    note,
    put,
    refuse_existing,
    report_error,
    write_file,
)
from core.errors import UserError

if TYPE_CHECKING:
    from core.importers.translation import Unknown

#: The supported tools, known before anything is loaded.
KINDS = ("axolotl", "llama-factory", "unsloth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--from", dest="kind", choices=KINDS)
    add_json_flag(parser, "print one JSON object with the configuration and the report")


def run(args: argparse.Namespace) -> int:
    """Convert the file; the exit code is 1 where it has keys that its tool does not know."""
    from core.importers.convert import import_config, render

    path = Path(args.file)
    out = Path(args.out) if args.out not in (None, "-") else None
    if out is not None:
        refuse_output(out, path, force=args.force)
    imported = import_config(path, args.kind, out.parent if out is not None else None)
    if out is not None:
        write_file(out, imported.toml, force=args.force)
    if args.json:
        emit(imported.to_dict())
    else:
        if out is None:
            put(imported.toml)
        note(*render(imported, shutil.get_terminal_size((100, 24)).columns))
        if out is not None:
            note(f"Written to {out}. '{PROGRAM} data --config {out}' checks its data.")
    for unknown in imported.unknown:
        report_error(unknown_key(path, imported.title, unknown))
    return EXIT_ERROR if imported.unknown else 0


def refuse_output(out: Path, source: Path, *, force: bool) -> None:
    """Refuse to overwrite a file, before anything is done.

    Raises:
        UserError: If the path exists, unless it is another file than the source and ``force`` is set.
    """
    # Not the methods of Path, which raise on names that are impossible for a file.
    if os.path.isdir(out):
        raise UserError(f"{out} is a directory.", "Name a file in it.")
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
        raise UserError(f"{out} is the file that is read.", "Choose another name.")
    if not force:
        refuse_existing(out)


def unknown_key(path: Path, title: str, unknown: Unknown) -> UserError:
    """The error for a key that the tool does not have; the others have been converted."""
    place = f"{path}, line {unknown.line}" if unknown.line else str(path)
    guess = f"Did you mean {unknown.guess}?" if unknown.guess else "Remove it, or fix it."
    return UserError(f"{place}: {title} has no key {unknown.key}; it was left out.", guess)
