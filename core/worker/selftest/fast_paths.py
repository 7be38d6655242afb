"""Check of the fast paths: outputs and gradients of each against the plain path, in every dtype of the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.text import one_line
from core.worker.fused.trial import Trial
from core.worker.fused.trials import trials
from core.worker.selftest.check import Bench, Outcome

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
#: Failed trials that are told of one by one.
_TOLD = 3


def check(bench: Bench) -> Outcome:
    """Try every fast path on the device that a run would take."""
    from core.worker.model.device import choose_device

    device = choose_device(bench.sizes.device)
    made: list[Trial] = []
    for dtype in dtypes(device.type, torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0):
        for trial in trials(device, dtype):
            made.append(trial)
            bench.tell(f"{trial.name} in {_NAMES[dtype]}", None, None)
    return judge(made)


def dtypes(kind: str, major: int) -> list[torch.dtype]:
    """The dtypes that a run may take on a device: ``major`` is that of a card's compute capability."""
    if kind == "cpu":
        return [torch.float32, torch.bfloat16]
    return [torch.float32, torch.float16, *([torch.bfloat16] if major >= 8 else [])]


def judge(made: Sequence[Trial]) -> Outcome:
    """The outcome of trials."""
    if not made:
        return Outcome("not applicable", "No fast path is used on this device.")
    failed = [trial for trial in made if not trial.passed]
    if failed:
        told = [f"{trial.name} in {_NAMES[trial.dtype]}: {one_line(str(trial.reason), 120)}" for trial in failed]
        rest = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        what = "trial differs" if len(failed) == 1 else "trials differ"
        return Outcome(
            "fail", f"{len(failed)} of {len(made)} {what} from the plain path: {'; '.join(told[:_TOLD])}{rest}."
        )
    worst = max(made, key=lambda trial: trial.worst / trial.allowed)
    names = list(dict.fromkeys(trial.name for trial in made))
    used = list(dict.fromkeys(_NAMES[trial.dtype] for trial in made))
    return Outcome(
        "pass",
        f"{len(made)} trials, outputs and gradients, in {', '.join(used)}: {'; '.join(names)}. The worst is "
        f"{worst.name} in {_NAMES[worst.dtype]}, {worst.worst:.1g} off where {worst.allowed:.1g} is allowed.",
    )
