"""``queue``: runs that wait for the device, started one after the other by a runner that needs neither app nor
terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import (
    EXIT_ERROR,
    EXIT_USAGE,
    PROGRAM,
    add_config,
    add_json_flag,
    agrees,
    emit,
    note,
    print_table,
    say,
)
from core.commands.parser import whole_number
from core.commands.starting import (
    NOBODY_STARTS,
    add_consent,
    starts_all_the_same,
    tell_runner,
    tell_total,
    unmet_in_queue,
)

if TYPE_CHECKING:
    from core.queue.book import Queue
    from core.queue.entry import QueueEntry
    from core.queue.estimate import Total
    from core.queue.view import EntryView, QueueView

_HEADINGS = ("ID", "STATE", "NAME", "RUN", "BEGINS", "ENDS", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of every action."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", help="without one: list")
    parser.set_defaults(do=_list)
    add_json_flag(parser)

    def action(name: str, help_: str, do: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        below: argparse.ArgumentParser = actions.add_parser(name, help=help_, description=f"{help_.capitalize()}.")
        below.set_defaults(do=do)
        # Without a default, so that one before the action holds.
        below.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as one JSON object"
        )
        return below

    from core.commands.train import add_run_options

    adding = action("add", "put a run to the end of the queue", _add)
    add_run_options(adding)
    adding.add_argument("--name")
    adding.add_argument("--hold", action="store_true")
    adding.add_argument("--start", action="store_true", help="start the runner as well, if it is stopped")
    add_consent(adding)
    starting = action("start", "start the runner, which starts the runs in order; it ends when nothing waits", _start)
    starting.add_argument("--detach", action="store_true")
    action("list", "present, waiting and ended entries, with expected times", _list)
    changes: tuple[tuple[str, str, Callable[[Queue, argparse.Namespace], Queue]], ...] = (
        ("hold", "keep an entry from being started", lambda queue, args: queue.held(args.id)),
        (
            "release",
            "let a held entry be started, or an ended one wait again for a new run",
            lambda queue, args: queue.released(args.id),
        ),
        (
            "remove",
            "take an entry out that is not started yet, or give up its index",
            lambda queue, args: queue.removed(args.id),
        ),
        (
            "move",
            "put an entry to another place among those that wait",
            lambda queue, args: queue.with_position(args.id, args.position),
        ),
    )
    for name, help_, change in changes:
        moving = action(name, help_, partial(_change, change))
        moving.add_argument("id", metavar="ID", type=whole_number, help="number of the entry")
    moving.add_argument("position", metavar="POSITION", nargs="?", type=whole_number, default=1)
    night = action("night", "limits for every queued run and the current one, overriding their own limits", _night)
    night.add_argument("values", metavar="KEY=VALUE", nargs="*")
    night.add_argument("--clear", action="store_true")
    action("stop", "end the runner; the current run goes on, and nothing else starts", _stop)
    action("clear", "take out the entries that have ended; their runs stay", _clear)
    _add_sweep_actions(action)
    unit = action("at-boot", "show a systemd user unit that goes on with the queue after a reboot; write it", _at_boot)
    unit.add_argument("--yes", action="store_true")


def _add_sweep_actions(action: Callable[..., argparse.ArgumentParser]) -> None:
    from core.commands.sweep import results, sweep

    sweeping = action("sweep", "a run for each combination of values of some options", sweep)
    add_config(sweeping)
    sweeping.add_argument("--over", metavar="SECTION.KEY=VALUE,…", action="append", required=True)
    sweeping.add_argument("--random", metavar="N", type=whole_number)
    sweeping.add_argument("--seed", type=int, default=0)
    sweeping.add_argument("--name")
    sweeping.add_argument("--yes", action="store_true")
    sweeping.add_argument("--start", action="store_true", help="start the runner as well, if it is stopped")
    found = action("results", "results of a sweep, the best one marked", results)
    found.add_argument("sweep", metavar="SWEEP")
    found.add_argument("--by", metavar="FIELD")


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    return int(args.do(args))


def _add(args: argparse.Namespace) -> int:
    from core.commands.live_line import busy
    from core.commands.train import read_run_config
    from core.queue import store
    from core.queue.entry import QueueEntry
    from core.queue.estimate import Estimator, total_of

    path, config = Path(args.config), read_run_config(args)
    with busy("estimating how long the run takes"):
        estimator = Estimator()
        wishes = unmet_in_queue(config, estimator, held=args.hold)
    if not starts_all_the_same(wishes, yes=args.yes):
        return EXIT_USAGE
    entry = QueueEntry(
        id=1,
        name=args.name or path.stem,
        state="held" if args.hold else "waiting",
        added=time.time(),
        source=str(path.absolute()),
        overrides=tuple(args.set),
    )
    (added,) = store.add([(entry, config)])
    with busy("estimating how long the run takes"):
        total = total_of([estimator.estimate(config)])
    note(tell_total(1, total))
    runner = tell_runner(start=args.start)
    if args.json:
        emit(describe_added(added, total, runner=runner))
    else:
        say(f"{added.id}")
    return 0


def describe_added(entry: QueueEntry, total: Total, *, runner: bool) -> dict[str, Any]:
    """An entry that was added, for ``--json``."""
    return {
        "entry": entry.id,
        "state": entry.state,
        "seconds_expected": total.seconds,
        "watt_hours_expected": total.watt_hours,
        "expected_by": total.by,
        "early_end": total.early_ends[0].to_dict() if total.early_ends else None,
        "runner": runner,
    }


def _start(args: argparse.Namespace) -> int:
    """Start the runner; without ``--detach`` show its activity until Ctrl-C or its end."""
    from core.queue.status import start_runner

    status, is_new = start_runner()
    if args.json:
        emit({"pid": status.pid, "started": is_new})
        return 0
    say(f"The runner {'has started' if is_new else 'is already running'}: process {status.pid}.")
    if not args.detach:
        note("Ctrl-C leaves it; it goes on.")
        _follow_runner()
    return 0


def _follow_runner() -> None:
    from core.queue.status import read_status

    said = ""
    try:
        while (status := read_status()) is not None:
            if status.doing != said:
                said = status.doing
                note(said)
            time.sleep(0.5)
        note("The runner has ended.")
    except KeyboardInterrupt:
        note("")


def _list(args: argparse.Namespace) -> int:
    from core.queue.estimate import Estimator
    from core.queue.view import QueueReader
    from core.units import format_moment

    now = time.time()
    view = QueueReader(Estimator()).read(now)
    if args.json:
        emit(describe_queue(view))
        return 0
    if words := view.night.words(now):
        note(f"tonight: {words}")
    if not view.rows:
        note(f"The queue is empty. Put a run into it with '{PROGRAM} queue add CONFIG'.")
        return 0
    print_table([_HEADINGS, *map(_cells, view.rows)])
    if view.has_plans:
        note("* time from the plan, as there is no run of this kind yet")
    if view.early_ends:
        note(f"^ ends before its last step by {' or '.join(view.early_ends)}")
    if view.ends is not None:
        starts = "" if view.runner is not None else ", if the runner starts now"
        note(f"all done {format_moment(view.ends, '%a %H:%M')}{starts}")
    if view.runner is not None:
        note(f"runner: {view.runner.doing}")
    elif view.upcoming:
        note(NOBODY_STARTS)
    return 0


def describe_queue(view: QueueView) -> dict[str, Any]:
    """The queue, for ``--json``."""
    runner = view.runner
    return {
        "runner": None if runner is None else {"pid": runner.pid, "doing": runner.doing, "entry": runner.entry},
        "entries": [row.to_dict(starts=runner is not None) for row in view.rows],
        "ends_expected": view.ends if runner is not None else None,
        "night": dict(view.night.values),
    }


def _cells(row: EntryView) -> tuple[str, ...]:
    from core.text import one_line
    from core.units import format_duration, format_moment

    entry = row.entry
    doing = row.state or entry.outcome or entry.state
    ended = entry.ended if entry.is_over else None
    words = f"{doing} {row.step}/{row.total_steps}" if row.state and row.total_steps else doing
    begins, ends = row.begins or entry.begun, row.ends or ended
    mark = row.marks
    takes = f"takes ~{format_duration(row.seconds)}{mark}" if row.seconds is not None else "–"
    return (
        str(entry.id),
        words if entry.state not in ("waiting", "held") else entry.state,
        one_line(row.about, 64),
        entry.run or "–",
        format_moment(begins, "%m-%d %H:%M") if begins else "–",
        f"{'' if ended else '~'}{format_moment(ends, '%m-%d %H:%M')}{mark}" if ends else takes,
        one_line(entry.trouble, 60),
    )


def _night(args: argparse.Namespace) -> int:
    """Set or show the limits of the night; options that are not named stay as they are."""
    from core.config.schema import full_name
    from core.errors import UserError
    from core.queue.store import read_queue
    from core.queue.tonight import change_night, tell_live_run

    now, night = time.time(), read_queue().night
    if args.values or args.clear:
        asked: dict[str, Any] = {} if args.clear else night.in_force(now)
        for text in args.values:
            name, sign, value = text.partition("=")
            if not sign:
                raise UserError(f"{text} is no KEY=VALUE.", "Write it as quiet_hours=22:00-07:00.")
            asked[full_name(name)] = value.strip()
        before = change_night(asked, now)
        if told := tell_live_run(before, now):
            note(told)
        night = read_queue().night
    if args.json:
        emit({"night": dict(night.values)})
    else:
        say(night.words(now) or "Nothing is set for the night; each run has its own limits.")
    return 0


def _change(change: Callable[[Queue, argparse.Namespace], Queue], args: argparse.Namespace) -> int:
    """Change one entry, and print its new state."""
    from core.queue import store

    queue = store.change(lambda before: change(before, args))
    entry: QueueEntry = next(entry for entry in queue.entries if entry.id == args.id)
    place = next((place for place, other in enumerate(queue.upcoming, 1) if other.id == entry.id), None)
    if args.json:
        emit({"entry": entry.id, "state": entry.state, "place": place})
    else:
        say(f"{entry.id}: {entry.state}{f', place {place}' if place is not None else ''}")
    return 0


def _stop(args: argparse.Namespace) -> int:
    from core.queue.status import stop_runner
    from core.queue.store import read_queue

    was_on = stop_runner()
    active = read_queue().active
    if args.json:
        emit({"stopped": was_on, "run": active.run if active is not None else None})
        return 0
    say("The runner has ended." if was_on else "The runner was not running.")
    if active is not None and active.is_indexing:
        note(f"The index of {active.run} is broken off, and goes on with the next runner.")
    elif active is not None and active.run is not None:
        note(f"{active.run} goes on; '{PROGRAM} stop {active.run}' stops it.")
    return 0


def _clear(args: argparse.Namespace) -> int:
    from core.queue import store

    count = store.clear()
    if args.json:
        emit({"cleared": count})
    else:
        say(f"Removed {count} {'entry' if count == 1 else 'entries'}; their runs are unchanged.")
    return 0


def _at_boot(args: argparse.Namespace) -> int:
    """Show the unit, ask, write it, and print the commands that the user has to run to enable it."""
    from core.queue.unit import unit_commands, unit_path, unit_text, write_unit

    path, text = unit_path(), unit_text()
    if args.json:
        if args.yes:
            write_unit()
        emit({"path": str(path), "unit": text, "written": args.yes, "commands": unit_commands()})
        return 0
    note(f"{path} would be:\n\n{text}")
    if not args.yes and not agrees(f"Write {path}?", "Add --yes to write it without a question."):
        note("Nothing written.")
        return EXIT_ERROR
    write_unit()
    say(f"{path} is written. To start it at boot, without a login:")
    say(*(f"  {line}" for line in unit_commands()))
    return 0
