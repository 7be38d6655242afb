"""Hints after the end of a run: commands that continue it, or start it again."""

from __future__ import annotations

import shlex

from core.runs.store import Run, complete_checkpoints


def way_on(run: Run) -> str:
    """The command that continues an ended run, as a sentence: ``continue`` if there is a checkpoint."""
    if complete_checkpoints(run):
        return f"'localtune-tui continue {run.id}' goes on from its last checkpoint."
    return f"It saved no checkpoint; {start_again(run)}."


def after_refusal(run: Run) -> str:
    """What can be done with a run whose result is refused."""
    if not complete_checkpoints(run):
        return "Train differently, or change eval.gate."
    return f"Look at what was refused: localtune-tui chat {run.id}. Train differently, or change eval.gate."


def start_again(run: Run) -> str:
    """The command that starts a run again, as the end of a sentence."""
    return f"start it again with 'localtune-tui train {shlex.quote(str(run.config_path))}'"
