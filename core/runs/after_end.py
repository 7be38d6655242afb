"""Ways to go on with a run that has ended before its last step."""

from __future__ import annotations

import shlex

from core.runs.store import Run, complete_checkpoints


def way_on(run: Run) -> str:
    """What takes up an ended run, as a sentence: ``continue`` where there is something to go on from."""
    if complete_checkpoints(run):
        return f"'localtune-tui continue {run.id}' goes on from its last checkpoint."
    return f"It saved no checkpoint; {start_again(run)}."


def start_again(run: Run) -> str:
    """How to begin a run once more, as the end of a sentence."""
    return f"start it again with 'localtune-tui train {shlex.quote(str(run.config_path))}'"
