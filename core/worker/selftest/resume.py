"""Check of resume: a run stopped and resumed in another process ends like an uninterrupted one, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

from core.config.schema import Config
from core.errors import UserError
from core.selftest.curve import curve_config
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun, strict

#: Share of dropped adapter inputs, so that the random state must be resumed too.
_DROPOUT = 0.1


def check(bench: Bench) -> Outcome:
    """Train twice, once with a stop in between, and compare losses and the bytes of the adapters."""
    config = _config(bench)
    whole, parted = WorkerRun(bench, "uninterrupted", config), WorkerRun(bench, "interrupted", config)
    whole.train()
    state = parted.train(stop=bool)
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
    if _digest(whole.run.adapter_path) != _digest(parted.run.adapter_path):
        return Outcome("fail", f"{where}: the losses are the same, the adapter's bytes are not.".capitalize())
    mode = ", in strict mode" if bench.is_cuda else ""
    return Outcome("pass", f"{where}{mode}: losses and the adapter's bytes are the same.".capitalize())


def _config(bench: Bench) -> Config:
    config = strict(curve_config(bench.sizes.model, bench.sizes.resume_steps, device=bench.sizes.device))
    return config.model_copy(update={"method": config.method.model_copy(update={"dropout": _DROPOUT})})


def _digest(adapter: Path) -> str:
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
