"""Memory plan of the edited configuration, for the bar below the form."""

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
    """Plan the memory of a configuration; blocks, as it queries the driver and reads file headers.

    Args:
        document: The configuration.
        paces: The pace of earlier runs, for the time estimate; without it, the plan gives the estimate.
        count: The number of rows, if known.
        lengths: The row lengths, if an analysis has measured them.
        source: As in :func:`core.memory.planner.make_plan`.

    Returns:
        None if the configuration has problems, or its model is not on this machine or has no ``config.json``.

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
    """Time estimate: ``about 14m 02s · 41 Wh · at the pace of 20261124-143601-tickets``; empty if unknown.

    An estimate from the plan needs measured row lengths; without them it would be many times too long.
    """
    if guess is None or (guess.by == "plan" and not is_measured):
        return ""
    words = estimate_words(guess)
    return " · ".join(filter(None, (words.duration, words.energy, words.end, one_line(words.basis, 120))))
