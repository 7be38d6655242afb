"""Rules of ``checkpoint``: intervals, and room on the disk."""

from __future__ import annotations

import math

from core.config.derived import step_count
from core.config.facts import Facts
from core.config.rules.rule import Findings, rule
from core.config.schema import Config
from core.units import format_bytes


@rule("warning", "checkpoint.every_steps", "train.max_steps")
def checkpoint_in_run(config: Config, facts: Facts) -> Findings:
    """checkpoint.every_steps is below the number of steps."""
    every, steps = config.checkpoint.every_steps, step_count(config, facts.rows)
    if every is not None and steps is not None and every > steps:
        yield (
            f"checkpoint.every_steps is {every}, and the run has {steps}: a run that is cut off begins anew.",
            "Lower it, or leave it out: ten are written then.",
        )


@rule("error", "checkpoint.keep", "method.rank")
def room_for_one(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for a checkpoint and the adapter."""
    need, free = facts.disk_need(config), facts.free_bytes
    if need is not None and free is not None and need.checkpoint > free:
        size = format_bytes(need.checkpoint)
        yield (
            f"A checkpoint takes about {size}, and the disk of the runs has {format_bytes(free)} free.",
            "Make room, set LOCALTUNE_HOME to a larger disk, or lower method.rank.",
        )


@rule("warning", "checkpoint.keep", "method.rank")
def room_for_all(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for as many checkpoints as are kept, and one more."""
    need, free, keep = facts.disk_need(config), facts.free_bytes, config.checkpoint.keep
    if need is not None and free is not None and need.checkpoint <= free < need.run:
        fewer = keep - math.ceil((need.run - free) / need.checkpoint)
        lower = f"Lower checkpoint.keep to {fewer}, or make" if fewer >= 1 else "Make"
        yield (
            f"{_checkpoints(keep)}, the one being written and the adapter take about {format_bytes(need.run)}, "
            f"and on the disk of the runs {format_bytes(free)} are free.",
            f"{lower} room.",
        )


def _checkpoints(count: int) -> str:
    return f"{count} checkpoint{'' if count == 1 else 's'}"
