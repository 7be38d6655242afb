"""Check of training: the losses of the first steps on the sample data, against the shipped ones."""

from __future__ import annotations

from core.selftest.curve import FIRST_SHARE, MEAN_SHARE, STEP_SHARE, LossCurve, curve_config
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun


def check(bench: Bench) -> Outcome:
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
