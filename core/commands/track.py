"""``track RUN``: send a run's metrics to a tracker, each of them once."""

from __future__ import annotations

import argparse
import subprocess
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_ERROR, add_json_flag, add_run_argument, emit, note, say
from core.config.choices import TRACKERS, Tracker
from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.record.store import Run
    from core.tracking.position import TrackerFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_argument(parser)
    parser.add_argument(
        "--to",
        metavar="TRACKER",
        action="append",
        choices=TRACKERS,
        help=f"{', '.join(TRACKERS)}; may be given several times (default: those of tracking.tools)",
    )
    parser.add_argument("--online", action="store_true")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Send the metrics that the trackers do not have yet; a live run's trackers go on in the background.

    Returns:
        0, or 1 if a tracker failed.
    """
    from core.launch.launcher import worker_environment
    from core.runs.record.store import find_run
    from core.tracking.start import start_tracker

    target = find_run(args.run)
    chosen = _places(target, args.to, online=args.online)
    is_live = not target.state().is_over
    results = []
    for place in chosen:
        before = place.position()
        if not before.is_working:
            if not is_live:
                note(f"{target.id}: {place.name} …")
            try:
                process = start_tracker(place, worker_environment())
            except OSError as error:
                raise UserError(f"No process can be started: {error.strerror}.", "Look at the machine.") from error
            if not is_live:
                _wait(process)
        results.append(_result(place, before.rows, is_live=is_live))
    if args.json:
        emit({"run": target.id, "trackers": results})
    else:
        say(*map(_line, results))
    return EXIT_ERROR if any(result["state"] == "failed" for result in results) else 0


def _places(target: Run, names: list[Tracker] | None, *, online: bool) -> list[TrackerFiles]:
    """The tracker destinations.

    Raises:
        UserError: If there is none, or a tracker without a server is named with ``--online``.
    """
    from core.tracking.position import TrackerFiles
    from core.tracking.start import places

    if online and (names or ["wandb"]) != ["wandb"]:
        raise UserError("Only wandb has a server to send to.", "Take --to wandb --online.")
    if online:
        return [TrackerFiles(target, "wandb", online=True)]
    asked = list(places(target, target.config()))
    if names is None:
        if not asked:
            raise UserError(f"{target.id} has no trackers in its configuration.", "Name one: --to tensorboard")
        return asked
    known = {place.tool: place for place in asked}
    return [known.get(name) or TrackerFiles(target, name) for name in dict.fromkeys(names)]


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a tracker's process, which ends by itself even if its library hangs."""
    try:
        process.wait()
    except BaseException:
        # Metrics whose delivery was not confirmed are sent again the next time.
        process.terminate()
        process.wait()
        raise


def _result(place: TrackerFiles, rows_before: int, *, is_live: bool) -> dict[str, Any]:
    position = place.position()
    return {
        "tracker": place.name,
        "state": "following" if is_live else position.state or "failed",
        "sent": 0 if is_live else max(position.rows - rows_before, 0),
        "step": position.step,
        "directory": str(place.data),
        "log": str(place.log),
        "reason": "" if is_live else position.reason,
    }


def _line(result: dict[str, Any]) -> str:
    name = result["tracker"]
    if result["state"] == "following":
        return f"{name}: follows the run; {result['log']} tells how it fares"
    if result["state"] == "failed":
        return f"{name}: failed, {result['reason'] or 'see ' + result['log']}"
    if not result["sent"]:
        return f"{name}: has everything, up to step {result['step']}; {result['directory']}"
    return f"{name}: {result['sent']} sets of figures sent, up to step {result['step']}; {result['directory']}"
