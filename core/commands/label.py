"""``label RUN…``: a display name, tags and a note for runs, whether lists leave them out, and the step that is their
result."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from core.commands.common import RUN_HELP, add_json_flag, emit, find_runs, say
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.record.store import Labels, Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help=f"{RUN_HELP}; or several")
    parser.add_argument("--name", metavar="TEXT")
    parser.add_argument("--tag", metavar="TAG", action="append", default=[])
    parser.add_argument("--untag", metavar="TAG", action="append", default=[])
    parser.add_argument("--note", metavar="TEXT")
    parser.add_argument("--result", metavar="STEP", type=int)
    archived = parser.add_mutually_exclusive_group()
    archived.add_argument("--archive", action="store_true")
    archived.add_argument("--unarchive", action="store_true")
    add_json_flag(parser, "print a JSON array with an object for each run")


def run(args: argparse.Namespace) -> int:
    """Change the given labels, and show all of them.

    Raises:
        UserError: If there is no such run, a text is too long, or several runs would get one name.
    """
    from core.runs.record.store import read_labels, write_labels

    chosen = find_runs(args.runs)
    if args.name and len(chosen) > 1:
        raise UserError("A name is for one run.", "Name one run, or give tags to several.")
    for target in chosen if args.result else ():
        check_result(target, args.result)
    before = [read_labels(target.path) for target in chosen]
    after = [changed(labels, args) for labels in before]
    for target, old, new in zip(chosen, before, after, strict=True):
        if old != new:
            write_labels(target.path, new)
    if args.json:
        emit([describe(target, labels) for target, labels in zip(chosen, after, strict=True)])
    else:
        say(*(f"{target.id}  {words(labels)}".rstrip() for target, labels in zip(chosen, after, strict=True)))
    return 0


def changed(labels: Labels, args: argparse.Namespace) -> Labels:
    """Labels with the changes of the arguments.

    Raises:
        UserError: If a text is too long, there are too many tags, or one is to be added and taken away.
    """
    from core.runs.record.store import NAME_LIMIT, NOTE_LIMIT, clean_tags, clean_text

    gone = set(clean_tags(args.untag))
    if both := gone & set(clean_tags(args.tag)):
        raise UserError(f"The tag {min(both)} is to be added and taken away.", "Name it in --tag or in --untag.")
    tags = clean_tags([*(tag for tag in labels.tags if tag not in gone), *args.tag])
    return dataclasses.replace(
        labels,
        name=labels.name if args.name is None else clean_text(args.name, NAME_LIMIT, "name"),
        tags=tags,
        note=labels.note if args.note is None else clean_text(args.note, NOTE_LIMIT, "note"),
        archived=args.archive or (labels.archived and not args.unarchive),
        result=labels.result if args.result is None else args.result or None,
    )


def check_result(target: Run, step: int) -> None:
    """Refuse a step that cannot be taken as the result of a run.

    Raises:
        UserError: If its checkpoint is missing or damaged, or the run has no adapter as its result.
    """
    from core.runs.catalog.trained import find_trained, is_adapter

    if not is_adapter(target.adapter_path):
        raise UserError(f"Run {target.id} has no adapter of its own.", f"Name the step in its use: {target.id}@{step}")
    find_trained(target, step)


def describe(target: Run, labels: Labels) -> dict[str, Any]:
    """The labels of a run: ``run``, ``name``, ``tags``, ``note``, ``archived`` and ``result``."""
    return {"run": target.id, **dataclasses.asdict(labels), "tags": list(labels.tags)}


def words(labels: Labels) -> str:
    """Labels on one line: ``more data  #keep  best so far  (archived)``."""
    tags = " ".join(f"#{tag}" for tag in labels.tags)
    taken = f"(step {labels.result} is the result)" if labels.result is not None else ""
    archived = "(archived)" if labels.archived else ""
    return "  ".join(part for part in (labels.name, tags, labels.note, taken, archived) if part)
