"""Check of running out of memory: provoked in forward and in backward, survived by the run's own recovery."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.runs.record.events import NoticeEvent
from core.units import format_bytes
from core.worker.selftest.check import RECORD, Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun, shape_config

#: Steps of the run: both shortages, and a few after.
_STEPS = 4
#: Codes of recovery notices.
RECOVERIES = ("memory_weights", "memory_cut", "memory_checkpointing", "memory_offload", "memory_again")
#: Allowed difference of the loss of a step that was cut, as a share: its sums are rounded in another order.
ALLOWED = 0.02


def check(bench: Bench) -> Outcome:
    """Train undisturbed and with two shortages, and compare the losses."""
    config = shape_config(bench, bench.sizes.shortage, _STEPS)
    quiet = WorkerRun(bench, "undisturbed", config)
    quiet.train()
    short = WorkerRun(bench, "short of memory", config, module="core.worker.selftest.wrapped", before=("starved",))
    short.train()
    return judge(_record(short.run.path), short.notices, short.losses, quiet.losses)


def _record(run: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def judge(
    taken: Sequence[dict[str, Any]],
    notices: Sequence[NoticeEvent],
    losses: Sequence[float],
    undisturbed: Sequence[float],
) -> Outcome:
    """The outcome.

    Args:
        taken: The ballast taken, and where.
        notices: Notices of the run that was short of memory.
        losses: Its losses.
        undisturbed: Losses of the other run.
    """
    recovered = [notice for notice in notices if notice.code in RECOVERIES]
    places = [str(item.get("where")) for item in taken]
    if sorted(places) != ["backward", "forward"]:
        return Outcome("fail", f"Memory was taken {len(places)} times instead of twice, so nothing is proven.")
    if len(recovered) < len(places):
        return Outcome(
            "fail", f"Memory was taken in forward and backward, and the run noticed {len(recovered)} shortages."
        )
    if len(losses) != len(undisturbed):
        return Outcome("fail", f"The run did {len(losses)} of {len(undisturbed)} steps.")
    apart = max(
        (abs(one - other) / other if math.isfinite(one) and other else math.inf)
        for one, other in zip(losses, undisturbed, strict=True)
    )
    most = format_bytes(max(int(item.get("bytes") or 0) for item in taken))
    said = (
        f"Up to {most} taken away in forward and in backward; the run gave way {len(recovered)} times and did all "
        f"{len(losses)} steps, with losses at most {apart:.2%} from those of a run left alone"
    )
    if apart > ALLOWED:
        return Outcome("fail", f"{said}, where {ALLOWED:.0%} is allowed.")
    return Outcome("pass", f"{said}.")
