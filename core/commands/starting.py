"""Shared output of the queue's commands: the estimate of the added runs, and the state of the runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.commands.common import PROGRAM, note

if TYPE_CHECKING:
    from core.queue.estimate import Total

#: The note for waiting entries without a runner.
NOBODY_STARTS = f"No runner is on, so nothing starts. Start it with: {PROGRAM} queue start"


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
        note(f"The runner {'is started' if is_new else 'is on already'}: process {status.pid}.")
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
