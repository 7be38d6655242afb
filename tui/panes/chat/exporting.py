"""The export that is asked for in a conversation: of which run, and of which of its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.chat.request import TUNED
from core.runs.catalog.trained import find_run_at
from core.runs.record.store import has_weights
from tui.messages import ExportRequested

if TYPE_CHECKING:
    from core.chat.request import Source
    from tui.panes.chat.partner import Partner


def wanted_export(partner: Partner, sources: Sequence[Source], other: str) -> ExportRequested | str:
    """The export of the model that answers, of several the first that was trained; a sentence where there is none.

    Args:
        partner: Who is talked to.
        sources: Who answers the next question.
        other: The key that lets the other source answer.

    Raises:
        UserError: If the run or the checkpoint that answers is not found.
    """
    run, step = partner.run, None
    source = partner.trained_one(tuple(sources))
    if run is None:
        return "This model was not trained here: there is nothing to export."
    if source is None:
        return f"The base answers, which was not trained here; {other} lets the tuned one answer."
    if os.path.isfile(source):
        return f"It is an export already: {source}"
    if source != TUNED:
        run, step = find_run_at(source)
    if not has_weights(run):
        return "There is nothing to export yet: no checkpoint has been saved."
    return ExportRequested(run, step)
