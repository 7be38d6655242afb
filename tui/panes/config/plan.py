"""The memory plan of the configuration being edited, for the bar below the form."""

from __future__ import annotations

from core.analysis.result import Lengths
from core.config.document import ConfigDocument
from core.errors import UserError
from core.memory.plan import RECLAIMABLE
from core.memory.planner import Source
from core.models.find import find_model
from core.quantization.job import known_sentence
from core.runs.outlook.estimate import Estimate, PaceBook, estimate_words
from core.runs.outlook.forecast import forecast_here
from core.text import one_line
from core.units import format_count
from tui.datasets.summary import counted
from tui.widgets.charts.plan_bar import PlanView


def plan_document(
    document: ConfigDocument,
    paces: PaceBook | None = None,
    count: int | None = None,
    lengths: Lengths | None = None,
    source: Source = "measured",
) -> PlanView | None:
    """Plan a configuration; asks the driver and reads headers, so call it from a thread.

    Args:
        document: The configuration.
        paces: Earlier runs, for the time estimate; None for none, so that it is by the plan.
        count: The number of rows, where it is known.
        lengths: Their lengths, where an analysis has measured them.
        source: As for :func:`core.memory.planner.make_plan`.

    Returns:
        None while it has problems, which the form shows, or its model is not on this machine or declares no shape.

    Raises:
        UserError: If the memory of its model cannot be estimated.
    """
    try:
        config = document.validate()
    except UserError:
        return None
    base = find_model(config.model.base)
    if base is None or (base.is_dir() and not (base / "config.json").is_file()):
        return None
    found = forecast_here(config, lengths, count, PaceBook(()) if paces is None else paces, source)
    batch = found.plan.micro_batch
    each = f", {found.each}" if found.each else ""
    return PlanView(
        [(part.name, part.bytes) for part in found.plan.parts if part.bytes and part.name not in RECLAIMABLE],
        found.plan.needed_bytes,
        found.plan.limit_bytes,
        found.fits,
        [advice.text for advice in found.advice],
        _time(found.estimate, is_measured=found.rows is not None),
        f"{counted(batch.rows, 'row')} of {format_count(batch.length)} tokens at once{each}"
        if found.rows is not None
        else f"for rows of {format_count(config.train.max_length)} tokens{each}",
        known_sentence(config),
        found.is_rough,
    )


def _time(guess: Estimate | None, *, is_measured: bool) -> str:
    """Time estimate: ``about 14m 02s · 41 Wh · at the pace of 20261124-143601-tickets``; empty without one.

    By the plan there is one only where the rows are measured: else it would be many times too long until they are.
    """
    if guess is None or (guess.by == "plan" and not is_measured):
        return ""
    words = estimate_words(guess)
    return " · ".join(filter(None, (words.duration, words.energy, words.end, one_line(words.basis, 120))))
