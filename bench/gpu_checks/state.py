"""Checks of a run's state: resume, running out of memory, paged states, and offloaded activations."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from bench.gpu_checks.models import ONE, WIDE
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand, trainer
from core.config.schema import Config, TrainSection
from core.errors import UserError
from core.helper import Helper
from core.units import format_bytes
from core.worker.oom.retry import Retry, attempt, multiply_both_ways, release
from core.worker.optim.optim import make_optimizer
from core.worker.optim.update import RetryableStep
from core.worker.selftest import training
from core.worker.selftest.ballast import MARGIN, CudaBallast
from core.worker.selftest.check import Bench
from core.worker.selftest.worker_run import WorkerRun

#: How far losses of a resumed run may be from those of an uninterrupted one where it need not be equal.
ROUNDING = 0.02


def check_10(stand: Stand) -> Found:
    """Train twice, once interrupted, with dropout; fast and strict."""
    bench = stand.bench(ONE)
    steps = bench.sizes.resume_steps
    rows = stand.rows([min(stand.length, 512)] * 2 * steps)
    figures: dict[str, Any] = {}
    for mode in ("fast", "strict") if stand.is_cuda else ("strict",):
        options = {
            "train.max_steps": steps,
            "train.batch_size": 2,
            "train.deterministic": mode,
            "method.dropout": 0.1,
        }
        figures[mode] = interrupted(bench, mode, stand.config(ONE, rows, options))
    strict = figures["strict"]
    price = None
    if "fast" in figures:
        price = strict["seconds"] / figures["fast"]["seconds"] - 1
        figures["strict_price"] = price
    said = f"{steps} steps, stopped after {strict['stopped_at']}: strict is "
    said += "equal bit for bit" if strict["equal"] else f"not equal, losses up to {strict['apart']:.2g} apart"
    if price is not None:
        fast = figures["fast"]
        said += f", and takes {price:+.0%}; fast is " + ("equal too" if fast["equal"] else f"{fast['apart']:.2g} apart")
    return Found("pass" if strict["equal"] else "fail", f"{said}.", figures)


def interrupted(bench: Bench, name: str, config: Config) -> dict[str, Any]:
    """A run without a stop and one with one: whether they end the same."""
    whole, parted = WorkerRun(bench, f"{name} whole", config), WorkerRun(bench, f"{name} parted", config)
    whole.train()
    if parted.train(stop_when=bool) != "stopped":
        raise UserError(f"The run was over before its stop was heard, after {len(parted.steps)} steps.")
    stopped_at = len(parted.steps)
    parted.train(resume=True)
    same_length = len(whole.losses) == len(parted.losses)
    apart = max(abs(one - other) for one, other in zip(whole.losses, parted.losses, strict=False))
    digests = [_digest(run) for run in (whole, parted)]
    return {
        "stopped_at": stopped_at,
        "equal": same_length and apart == 0 and digests[0] == digests[1],
        "complete": same_length,
        "apart": apart,
        "loss": whole.losses[-1],
        "seconds": statistics.median(step.seconds for step in whole.steps[1:]),
    }


def _digest(run: WorkerRun) -> str:
    """Digest of what came of a run."""
    digest = hashlib.sha256()
    for directory in (run.run.adapter_path, run.run.path / "model"):
        for path in sorted(directory.glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Out of memory.


def check_11(stand: Stand) -> Found:
    """Run out of memory in forward, backward and the optimizer, and where cuBLAS wants a handle."""
    figures: dict[str, Any] = {}
    wrong = []
    if stand.is_cuda:
        # First, as the handle of the backward pass is made only once.
        figures["handle"] = _handle()
        figures["optimizer"] = _optimizer()
        wrong = [f"{name}: {figures[name]}" for name in ("handle", "optimizer") if "survived" not in figures[name]]
    outcome = training.out_of_memory(stand.bench(ONE))
    figures["run"] = outcome.detail
    if outcome.result != "pass" or wrong:
        return Found("fail", "; ".join([*wrong, outcome.detail]), figures)
    more = f" Optimizer: {figures['optimizer']}. cuBLAS: {figures['handle']}." if stand.is_cuda else ""
    return Found("pass", f"{outcome.detail}{more}", figures)


def _handle() -> str:
    """The first backward pass on a card that is full of cached blocks."""
    device = torch.device("cuda")
    square = torch.ones(16, 16, device=device)
    (square @ square).sum().item()
    blocks = []
    with_room = torch.cuda.mem_get_info()[0] - MARGIN // 8
    while with_room > 0:
        size = min(with_room, 1 << 30)
        tried = attempt(lambda size=size: torch.empty(size, dtype=torch.uint8, device=device))  # type: ignore[misc]
        if tried.result is None:
            break
        blocks.append(tried.result)
        with_room = torch.cuda.mem_get_info()[0] - MARGIN // 8
    blocks.clear()
    free = torch.cuda.mem_get_info()[0]
    first = attempt(lambda: multiply_both_ways(device))
    if first.failed:
        multiply_both_ways(device)
        return f"ran out with {format_bytes(free)} free, recognized and survived"
    release()
    return f"survived without running out, with {format_bytes(free)} free"


def _optimizer() -> str:
    """The first step of an optimizer, whose states do not fit at first."""
    device = torch.device("cuda")
    parameters = [torch.nn.Parameter(torch.zeros(4 << 20, device=device)) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    ballast, told = CudaBallast(device), []

    def notice(code: str, _message: str, _hint: str) -> None:
        told.append(code)
        ballast.release()

    step = RetryableStep(make_optimizer(parameters, TrainSection()), Retry(notice=notice))
    ballast.take()
    try:
        step()
    finally:
        ballast.release()
    moved = all(bool((parameter < 0).all()) for parameter in parameters)
    if not told or not moved:
        return f"{len(told)} shortages were noticed, and weights are {'updated' if moved else 'not updated'}"
    return f"ran out {len(told)} times, and survived"


# Paged states.


def check_12(stand: Stand) -> Found:
    """Train all weights of 1B where its optimizer's states have no room on the card."""
    bench = stand.bench(ONE)
    steps, length = 10, min(stand.length, 512)
    rows = stand.rows([length] * 2 * steps)
    options = {
        "method.name": "full",
        "train.optimizer": "paged_adamw_8bit",
        "train.max_steps": steps,
        "train.batch_size": 2,
        "train.learning_rate": 1e-5,
        "memory.gradient_checkpointing": "on",
    }
    config = stand.config(ONE, rows, options)
    leave, paged = room_beside_states(config, [length] * 2 * steps)
    figures: dict[str, Any] = {"left_bytes": leave, "paged_bytes": paged}
    with Helper("bench.gpu_checks.ballast", str(leave)) as ballast:
        figures["ballast"] = next(ballast.answers())
        began = time.monotonic()
        figures |= interrupted(bench, "paged", config)
        figures["all_seconds"] = time.monotonic() - began
    limit = ROUNDING * abs(figures["loss"])
    fine = figures["complete"] and figures["apart"] <= limit
    return Found(
        "pass" if fine else "fail",
        f"{format_bytes(leave)} left for a run with {format_bytes(paged)} of paged states: "
        f"{figures['seconds']:.2f} s a step; resumed, its losses are up to {figures['apart']:.2g} from those of a run "
        f"without a stop, where {limit:.2g} is allowed.",
        figures,
    )


def room_beside_states(config: Config, lengths: list[int]) -> tuple[int, int]:
    """Resident bytes of the plan, with a margin; and the bytes that may page."""
    from core.hardware import cpu
    from core.memory.plan import Machine
    from core.memory.planner import make_plan
    from core.memory.rows import rows_of_tokens
    from core.models.architecture.measuring import load_architecture
    from core.models.find import locate_model

    used, total = cpu.memory()
    machine = Machine("cuda", limit_bytes=24 << 30, host_bytes=total - used)
    architecture = load_architecture(locate_model(config.model.base))
    plan = make_plan(architecture, config, machine, rows_of_tokens(lengths, sum(lengths)))
    return plan.needed_bytes + (512 << 20), plan.states_host_bytes


# Offload.


def check_14(stand: Stand) -> Found:
    """Gradients with activations offloaded and not, and with every launch waited for."""
    found = {waits: _offload_in_process(stand, waits) for waits in ("0", "1")}
    figures: dict[str, Any] = {f"CUDA_LAUNCH_BLOCKING={waits}": case for waits, case in found.items()}
    digests = {case[key] for case in found.values() for key in ("kept", "offloaded")}
    price = found["0"]["offloaded_seconds"] - found["0"]["kept_seconds"]
    figures["copy_seconds"] = price
    fine = len(digests) == 1
    same = "the same bits" if fine else f"{len(digests)} different ones"
    return Found(
        "pass" if fine else "fail",
        f"Gradients of layers' inputs kept and offloaded, launches waited for and not: {same}. Offloading takes "
        f"{1000 * price:.1f} ms of a step of {1000 * found['0']['kept_seconds']:.0f}.",
        figures,
    )


def _offload_in_process(stand: Stand, waits: str) -> dict[str, Any]:
    request = {"work": str(stand.work), "models": str(stand.models), "tiny": stand.tiny, "device": stand.device}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_checks.state", json.dumps(request)],
        env={**os.environ, "CUDA_LAUNCH_BLOCKING": waits},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def offload(stand: Stand) -> dict[str, Any]:
    """Digests of a step's gradients, and its seconds, with layers' inputs kept and offloaded."""
    rows = stand.rows([stand.length] * 2)
    options = {
        "train.batch_size": 2,
        "train.deterministic": "strict",
        "memory.gradient_checkpointing": "on",
        "memory.activation_offload": "on",
    }
    found: dict[str, Any] = {}
    with trainer(stand, stand.config(WIDE, rows, options)) as made:
        parts = made.parts
        for name, offloaded in (("kept", False), ("offloaded", True), ("kept", False), ("offloaded", True)):
            parts.micro_batches.checkpointing.enable(offload=offloaded)
            began = time.monotonic()
            made.recipe.accumulate([[0, 1]])
            torch.cuda.synchronize()
            # The second time counts, when memory is there.
            found[f"{name}_seconds"] = time.monotonic() - began
            digest = hashlib.sha256()
            for parameter in parts.loaded.model.parameters():
                if parameter.grad is not None:
                    digest.update(parameter.grad.float().cpu().numpy().tobytes())
                    parameter.grad = None
            found[name] = digest.hexdigest()
            found[f"{name}_in_force"] = parts.state.offloading
        del parts
    return found


if __name__ == "__main__":
    from pathlib import Path

    asked = json.loads(sys.argv[1])
    print(json.dumps(offload(Stand(Path(asked["work"]), Path(asked["models"]), asked["tiny"], asked["device"], {}))))
