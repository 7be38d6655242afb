"""Checks by real runs: the losses of a training, the resume of a stopped one, and recovery from a lack of memory."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config.schema import Config
from core.errors import UserError
from core.runs.record.events import NoticeEvent
from core.selftest.curve import FIRST_SHARE, MEAN_SHARE, STEP_SHARE, LossCurve, curve_config
from core.small_files import hash_file
from core.units import format_bytes
from core.worker.selftest.check import RECORD, Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun, shape_config


def training(bench: Bench) -> Outcome:
    """Train as in the recording of the curve, on this device and in its own precision."""
    sizes = bench.sizes
    run = WorkerRun(bench, "training", curve_config(sizes.model, sizes.curve_steps, device=sizes.device))
    run.train()
    deviation = LossCurve.shipped().deviation(run.losses)
    band = f"allowed are {FIRST_SHARE:.0%} for the first, {STEP_SHARE:.0%} for others and {MEAN_SHARE:.0%} for the mean"
    said = (
        f"{deviation.steps} steps from loss {run.losses[0]:.2f} to {run.losses[-1]:.2f}; the shipped losses are "
        f"{deviation.most:.1%} away at most and {deviation.mean:.1%} in the mean; {band}."
    )
    if deviation.is_inside and deviation.steps == sizes.curve_steps:
        return Outcome("pass", said)
    where = ", ".join(map(str, deviation.outside)) or "none alone"
    return Outcome("fail", f"{said} Steps outside: {where}.")


#: Share of dropped adapter inputs, so that the random state must be resumed too.
_DROPOUT = 0.1


def resume(bench: Bench) -> Outcome:
    """Train twice, once with a stop in between, and compare losses and the bytes of the adapters."""
    config = _config(bench)
    whole, parted = WorkerRun(bench, "uninterrupted", config), WorkerRun(bench, "interrupted", config)
    whole.train()
    state = parted.train(stop_when=bool)
    if state != "stopped":
        raise UserError(f"The run was over before its stop was heard, after {len(parted.steps)} steps.")
    stopped_at = len(parted.steps)
    parted.train(resume=True)
    differing = [
        number
        for number, (one, other) in enumerate(zip(whole.losses, parted.losses, strict=False), start=1)
        if one != other
    ]
    where = f"stopped after step {stopped_at} of {bench.sizes.resume_steps} and resumed"
    if len(whole.losses) != len(parted.losses):
        return Outcome("fail", f"{where}: {len(parted.losses)} steps instead of {len(whole.losses)}.".capitalize())
    if differing:
        first = differing[0]
        apart = abs(whole.losses[first - 1] - parted.losses[first - 1])
        return Outcome("fail", f"{where}: from step {first} on the losses differ, by {apart:.2g} there.".capitalize())
    adapters = {hash_file(run.run.adapter_path / "adapter_model.safetensors") for run in (whole, parted)}
    if len(adapters) > 1:
        return Outcome("fail", f"{where}: the losses are the same, the adapter's bytes are not.".capitalize())
    mode = ", in strict mode" if bench.is_cuda else ""
    return Outcome("pass", f"{where}{mode}: losses and the adapter's bytes are the same.".capitalize())


def _config(bench: Bench) -> Config:
    config = curve_config(bench.sizes.model, bench.sizes.resume_steps, device=bench.sizes.device)
    train = config.train.model_copy(update={"deterministic": "strict"})
    method = config.method.model_copy(update={"dropout": _DROPOUT})
    return config.model_copy(update={"train": train, "method": method})


#: Steps of the run: both shortages, and a few after.
_STEPS = 4
#: Codes of recovery notices.
RECOVERIES = ("memory_weights", "memory_cut", "memory_checkpointing", "memory_offload", "memory_again")
#: Allowed difference of the loss of a step that was cut, as a share: its sums are rounded in another order.
ALLOWED = 0.02


def out_of_memory(bench: Bench) -> Outcome:
    """Train undisturbed and with two shortages, and compare the losses."""
    config = shape_config(bench, bench.sizes.shortage, _STEPS)
    quiet = WorkerRun(bench, "undisturbed", config)
    quiet.train()
    short = WorkerRun(bench, "short of memory", config, "starved")
    short.train()
    return judge_shortage(_record(short.run.path), short.notices, short.losses, quiet.losses)


def _record(run: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def judge_shortage(
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
