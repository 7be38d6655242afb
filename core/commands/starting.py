"""Before a run starts or is queued: consent to wishes that cannot be met, the estimate, and the queue's runner."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.commands.common import PROGRAM, agrees, note

if TYPE_CHECKING:
    from core.config.facts import Unkept
    from core.config.schema import Config
    from core.queue.estimate import Estimator, Total

#: The note for waiting entries without a runner.
NOBODY_STARTS = f"The runner is stopped, so nothing starts. Start it with: {PROGRAM} queue start"


def tell_runner(*, start: bool) -> bool:
    """Start the runner on request, and print a note if nothing will start by itself.

    Args:
        start: Whether to start it.

    Returns:
        Whether a runner is on.

    Raises:
        UserError: If it does not begin.
    """
    from core.queue.status import read_status, start_runner

    if start:
        status, is_new = start_runner()
        note(f"The runner {'has started' if is_new else 'is already running'}: process {status.pid}.")
        return True
    if read_status() is not None:
        return True
    note(NOBODY_STARTS)
    return False


def tell_total(count: int, total: Total) -> str:
    """The expected time and energy of runs together, in a sentence that also names the unknown parts.

    Args:
        count: Number of runs.
        total: The sum of their estimates.
    """
    from core.units import format_duration

    runs, they_take = (f"{count} runs", "they take") if count != 1 else ("1 run", "it takes")
    if total.seconds is None:
        why = "no earlier run has this model, method and device" + (f", and {total.reason}" if total.reason else "")
        return f"{runs}; how long {they_take} is not known, as {why}."
    known = f" ({total.unknown} of them not known)" if total.unknown else ""
    # The plan knows nothing of evaluations and checkpoints.
    what = " of steps" if total.by == "plan" else ""
    about = f"about {format_duration(total.seconds)}{what}{_basis(total)}{known}, {_energy(total)}"
    return f"{runs}; {about}{_early_ends(count, total)}."


def _basis(total: Total) -> str:
    """The number of durations that come from the plan, and its assumptions; empty if all come from measured runs."""
    from core.runs.outlook.estimate import tell_assumed

    if not total.by_plan:
        return ""
    assumed = tell_assumed(total.assumed)
    if total.by == "plan":
        return f" by the plan (no run of this kind yet{assumed})"
    return f" ({total.by_plan} of them by the plan: no run of their kind yet{assumed})"


def _early_ends(count: int, total: Total) -> str:
    """The clause about runs that a limit ends before their last step; empty if there are none."""
    from core.runs.outlook.estimate import tell_early_end

    ends = total.early_ends
    if not ends:
        return ""
    if count == 1:
        return f"; it {tell_early_end(ends[0])}"
    options = " or ".join(dict.fromkeys(end.option for end in ends))
    they_end = "ends before its" if len(ends) == 1 else "end before their"
    return f"; {len(ends)} of them {they_end} last step by {options}"


def _energy(total: Total) -> str:
    if total.watt_hours is None:
        why = {"pace": "earlier runs have no reading", "plan": "the device tells no power limit"}
        return f"energy not known, as {why[total.by]}" if total.by in why else "energy not known"
    if total.by == "pace":
        return f"about {total.watt_hours:,.0f} Wh" + (" at least" if total.without_energy else "")
    besides = f", {total.without_energy} of them not known" if total.without_energy else ""
    return f"at most about {total.watt_hours:,.0f} Wh by the power limit{besides}"


def add_consent(parser: argparse.ArgumentParser) -> None:
    """Declare ``--yes``."""
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask where a deadline or an energy of [night] cannot be met; needed where there is no terminal",
    )


def starts_all_the_same(found: Iterable[Unkept], *, yes: bool) -> bool:
    """Print the wishes that cannot be met; where an earlier run has shown it, ask whether to start all the same. An
    estimate without such a run is only a warning.

    Args:
        found: The wishes.
        yes: Whether the user has agreed beforehand.
    """
    wishes = list(found)
    for wish in wishes:
        note(f"{'' if wish.is_measured else 'warning: '}{wish}")
    if yes or not any(wish.is_measured for wish in wishes):
        return True
    if sys.stdin.isatty() and agrees("Go on anyway, as close to that as possible?", ""):
        return True
    note("Nothing was started or queued. Add --yes to go on anyway, as close to the wish as possible.")
    return False


def unmet_now(config: Config) -> list[Unkept]:
    """The wishes that a run cannot meet if it starts now; earlier runs are read only if it has wishes."""
    import time

    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import unmet, wants_plan

    return list(unmet(config, Estimator().estimate(config), time.time())) if wants_plan(config) else []


def unmet_in_queue(config: Config, estimator: Estimator, *, held: bool = False) -> list[Unkept]:
    """The wishes that a run at the end of the queue cannot meet; its deadline only if its start can be estimated.

    Args:
        config: Its configuration.
        estimator: Estimates it, and the runs before it.
        held: Whether it is to wait until it is released.

    Raises:
        UserError: If the queue cannot be read.
    """
    from core.queue.view import next_begin
    from core.runs.outlook.forecast import unmet, wants_plan

    if not wants_plan(config):
        return []
    return list(unmet(config, estimator.estimate(config), None if held else next_begin(estimator)))
