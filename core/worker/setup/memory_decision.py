"""Memory decisions at the start of training, and memory events: the plan against measurements."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from core.config.derived import sequences_per_row
from core.config.schema import Config
from core.errors import UserError
from core.hardware import cpu
from core.hardware.cpu import prefers_bf16
from core.hardware.drivers import NO_PINNED_MEMORY, is_wsl
from core.memory.calibration import read_calibration
from core.memory.cards import Cards
from core.memory.phases import gpu_runtime
from core.memory.plan import Machine, Plan
from core.memory.planner import make_least_plan, make_plan
from core.memory.rows import Rows, rows_of_tokens
from core.memory.strategy import Chosen, chosen_strategy
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import load_architecture
from core.models.find import locate_model
from core.units import format_bytes
from core.worker.data.batches import supervised_count
from core.worker.data.dataset import Dataset
from core.worker.fused.install import Fused
from core.worker.model.device import allowed_bytes, name_of
from core.worker.process.recorder import Recorder, peak_rss_bytes
from core.worker.progress.state import TrainState


@dataclass(frozen=True)
class MemoryDecision:
    """Memory decisions at the start of a run."""

    token_budget: int
    """Token budget of a micro-batch, padding included."""
    checkpointing: bool
    """True if activations are recomputed in backward."""
    kept_layers: int
    """Number of last layers whose activations are kept despite ``checkpointing``."""
    checkpointing_reason: str
    offload: bool
    """True if the inputs of recomputed layers are offloaded to host memory."""
    offload_reason: str
    """Empty if there is nothing to say."""
    dequantized: bool
    """True if 16-bit copies of 4-bit weights are kept."""
    cut: bool = False
    """True if more memory would allow larger micro-batches."""


@dataclass(frozen=True)
class Planner:
    """Memory plans of a run. The files of its base are read once.

    Args:
        base: As ``model.base``, ready to be loaded.
        device: Where it runs.
    """

    base: str
    device: torch.device

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The base's.

        Raises:
            UserError: If it cannot be planned.
        """
        return load_architecture(locate_model(self.base))

    def measure_ahead(self, config: Config) -> None:
        """Start measuring the model while the rows are read, unless it is cached. The first plan waits for the
        result."""

        def measure() -> None:
            # The first plan raises the error again.
            with contextlib.suppress(UserError):
                make_plan(self.architecture, config, _machine(self.device))

        threading.Thread(target=measure, name="measuring", daemon=True).start()

    def plan(
        self, config: Config, dataset: Dataset, token_budget: int, *, limited: bool = True, **settled: Any
    ) -> Plan | None:
        """The plan of a run; None if it cannot be made.

        Args:
            config: Of the run.
            dataset: The training rows.
            token_budget: The most tokens of a micro-batch.
            limited: Plan for the memory that is available now.
            settled: Options of :func:`core.memory.planner.make_plan`.
        """
        machine = _with_limit(self.device) if limited else _machine(self.device)
        with contextlib.suppress(UserError):
            rows = _rows(config, dataset)
            return make_plan(self.architecture, config, machine, rows, token_budget=token_budget, **settled)
        return None


def decide_memory(config: Config, planner: Planner, dataset: Dataset, token_budget: int) -> MemoryDecision:
    """Memory decisions once the model is loaded: by the configuration, and for ``auto`` by the plan with the memory
    free by then.

    Args:
        config: Of the run.
        planner: Plans its memory.
        dataset: The training rows.
        token_budget: The most tokens of a micro-batch, if there is room.
    """
    wanted, plan = config.memory.gradient_checkpointing, planner.plan(config, dataset, token_budget)
    if plan is None:
        recomputing, kept, budget, cut = wanted == "on", 0, token_budget, False
    else:
        recomputing, kept, budget = plan.checkpointing, plan.kept_layers, plan.token_budget
        cut = budget < token_budget
    why = _reason(config, planner.device, plan, cut=cut)
    offload, why_offload = decide_offload(config, planner, dataset, budget, recomputing and not kept)
    dequantized = plan is not None and plan.dequantized
    return MemoryDecision(budget, recomputing, kept if recomputing else 0, why, offload, why_offload, dequantized, cut)


def decide_experts(config: Config, planner: Planner, dataset: Dataset, token_budget: int) -> tuple[bool, str]:
    """Decide whether the 4-bit experts of a mixture live in host memory, before the model is loaded. Returns the
    decision and its reason, which is empty if there is nothing to say.

    The numbers are the same either way, so a resumed run may decide differently.

    Args:
        config: Of the run.
        planner: Plans its memory.
        dataset: The training rows.
        token_budget: The most tokens of a micro-batch, if there is room.
    """
    wanted = config.memory.offload_experts
    if planner.device.type != "cuda" or wanted == "off":
        return False, ""
    plan = planner.plan(config, dataset, token_budget)
    if plan is None:
        return wanted == "on", ""
    if not plan.experts_host_bytes:
        return False, ""
    if wanted == "on":
        return True, "Experts are kept in the machine's memory: memory.offload_experts = on."
    here = planner.plan(with_experts(config, there=False), dataset, token_budget)
    needed = "" if here is None else f" {format_bytes(here.needed_bytes)} of {format_bytes(here.limit_bytes)}"
    return True, f"Experts are kept in the machine's memory: with them on the GPU the run would take{needed}."


def with_experts(config: Config, *, there: bool) -> Config:
    """The configuration with the decision about experts: in host memory or on the device."""
    return config.with_options(memory={"offload_experts": "on" if there else "off"})


def _reason(config: Config, device: torch.device, plan: Plan | None, *, cut: bool) -> str:
    """Reason why activations are kept or recomputed."""
    wanted = config.memory.gradient_checkpointing
    if wanted == "auto" and config.memory.activation_offload == "on" and device.type == "cuda":
        return "Activations are recomputed, as memory.activation_offload = on moves what that starts from."
    if wanted == "auto" and plan is None:
        return "Activations are kept unless memory runs out: the memory of this model cannot be planned."
    if plan is not None and wanted == "auto":
        return plan.reason
    if plan is not None and cut:
        return f"{plan.reason.removesuffix('.')}; memory.gradient_checkpointing = {wanted}."
    what = "recomputed" if wanted == "on" else "kept unless memory runs out"
    return f"Activations are {what}: memory.gradient_checkpointing = {wanted}."


@dataclass(frozen=True)
class MemoryMeter:
    """Memory events: the peak so far, and after the rehearsal the plan's prediction.

    Args:
        config: Of the run.
        planner: Plans its memory.
        dataset: The training rows.
        state: Of the training.
        fused: Fused layers, whose copies of weights count.
        recorder: Where events go.
    """

    config: Config
    planner: Planner
    dataset: Dataset
    state: TrainState
    fused: Fused
    recorder: Recorder

    def reset_peak(self) -> None:
        """Reset the peak of a GPU."""
        if self.planner.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.planner.device)

    def record(self, *, rehearsed: bool = False) -> None:
        """Record the peak.

        Args:
            rehearsed: The rehearsal has just ended, so the peak is its own.
        """
        device, predicted = self.planner.device, None
        if rehearsed:
            kept = self.fused.keeps_weights
            predicted = predict_memory(self.config, self.planner, self.dataset, self.state, dequantized=kept)
        if device.type == "cuda":
            peak, (free, total) = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)
            limit = min(total, free + torch.cuda.memory_reserved(device))
        else:
            # Resident memory, including the libraries and the loading of the model, as in the plan.
            peak, limit = peak_rss_bytes(), _limit(device)
        self.recorder.memory(
            str(device),
            predicted_bytes=predicted,
            rehearsed_bytes=peak if rehearsed else None,
            peak_bytes=peak,
            limit_bytes=limit,
        )


def predict_memory(
    config: Config, planner: Planner, dataset: Dataset, state: TrainState, *, dequantized: bool = False
) -> dict[str, int] | None:
    """Planned memory of a run with its current micro-batches and checkpointing.

    Args:
        config: Of the run.
        planner: Plans its memory.
        dataset: The training rows.
        state: Current token budget and checkpointing.
        dequantized: 16-bit copies of 4-bit weights are kept.

    Returns:
        Bytes by part; None if this model cannot be planned, which is no reason not to train it.
    """
    plan = planner.plan(
        config,
        dataset,
        state.token_budget,
        limited=False,
        checkpointing=state.checkpointing,
        kept_layers=state.kept_layers,
        offload=state.offloading,
        dequantized=dequantized,
    )
    return None if plan is None else plan.by_name()


def decide_offload(
    config: Config, planner: Planner, dataset: Dataset, token_budget: int, recomputing: bool
) -> tuple[bool, str]:
    """Decide whether the inputs of recomputed layers are offloaded to host memory from the start. Returns the decision
    and its reason, which is empty if there is nothing to say.

    Args:
        config: Of the run.
        planner: Plans its memory.
        dataset: The training rows.
        token_budget: Tokens of a micro-batch.
        recomputing: Activations are recomputed.
    """
    wanted = config.memory.activation_offload
    if planner.device.type != "cuda":
        ignored = "memory.activation_offload is on, and on a CPU all activations are in the machine's memory anyway."
        return False, ignored if wanted == "on" else ""
    if wanted != "auto" or not recomputing:
        asked = wanted == "on" and recomputing
        return asked, "Layers' inputs are moved off the GPU: memory.activation_offload = on." if asked else ""
    here = planner.plan(config, dataset, token_budget, checkpointing=True, offload=False)
    there = planner.plan(config, dataset, token_budget, checkpointing=True, offload=True)
    if here is None or there is None or here.fits or not there.offload:
        return False, ""
    needed, free = format_bytes(here.needed_bytes), format_bytes(here.limit_bytes)
    stay = f"Layers' inputs stay on the GPU, where the run would take {needed} of {free}"
    if is_wsl():
        return False, f"{stay}: {NO_PINNED_MEMORY}."
    if not there.host_fits:
        pinned, room = format_bytes(there.host_bytes), format_bytes(there.host_free_bytes)
        return False, f"{stay}: they would take {pinned} of the machine's memory, and {room} are free."
    return True, f"Layers' inputs are moved off the GPU: with them there the run would take {needed} of {free}."


def spare_bytes(config: Config, planner: Planner, dataset: Dataset, token_budget: int) -> int | None:
    """Memory beyond the minimum plan of the run, in bytes, available for quality before speed; None if it cannot be
    planned.

    Args:
        config: Of the run.
        planner: Plans its memory; the model is not loaded yet.
        dataset: The training rows.
        token_budget: The most tokens of a micro-batch, if there is room.
    """
    with contextlib.suppress(UserError):
        machine, rows = _with_limit(planner.device), _rows(config, dataset)
        plan = make_least_plan(planner.architecture, config, machine, rows, token_budget=token_budget)
        return None if plan.limit_bytes is None else max(plan.limit_bytes - plan.needed_bytes, 0)
    return None


def plan_strategy(config: Config, planner: Planner, dataset: Dataset, processes: int) -> Chosen | None:
    """Strategy of a run of several processes, by the free memory of this process's device; None if it cannot be
    planned.

    Args:
        config: Of the run.
        planner: Plans its memory; the model is not loaded yet.
        dataset: The training rows.
        processes: Number of processes on all machines.
    """
    with contextlib.suppress(UserError):
        machine, rows = _with_limit(planner.device), _rows(config, dataset)
        return chosen_strategy(planner.architecture, config, machine, rows, cards=Cards(processes))
    return None


def _rows(config: Config, dataset: Dataset) -> Rows:
    """The training rows, in the plan's form."""
    supervised = sum(map(supervised_count, dataset.rows)) // sequences_per_row(config.train.objective)
    return rows_of_tokens(dataset.lengths, supervised)


def _machine(device: torch.device) -> Machine:
    """This machine for the plan, without its free memory."""
    bf16 = prefers_bf16()
    if device.type != "cuda":
        name = cpu.cpu_name()
        cuda_build = torch.version.cuda is not None
        return Machine("cpu", bf16=bf16, device=name, calibration=read_calibration(name), cuda_build=cuda_build)
    used, total = cpu.memory()
    name = name_of(device) if torch.cuda.is_available() else ""
    return Machine(
        "cuda",
        bf16=bf16,
        host_bytes=total - used,
        device=name,
        calibration=read_calibration(name),
        capability=torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None,
        expandable=has_expandable_segments(os.environ),
        pins=not is_wsl(),
    )


def _with_limit(device: torch.device) -> Machine:
    """This machine with the memory available to the whole run."""
    return replace(_machine(device), limit_bytes=_limit(device))


def has_expandable_segments(environment: Mapping[str, str]) -> bool:
    """True if expandable segments are requested from torch's CUDA allocator, under either name of its settings.

    Args:
        environment: Environment variables.
    """
    found = (environment.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    return any("expandable_segments:true" in settings.lower() for settings in found)


def _limit(device: torch.device) -> int:
    """Memory available to the whole run: free memory plus its own usage so far, counted as the plan counts it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        runtime = gpu_runtime(read_calibration(name_of(device)))
        unused, allowed = int(free) + torch.cuda.memory_reserved(device), allowed_bytes(device)
        return (unused if allowed is None else min(unused, allowed)) + runtime
    used, total = cpu.memory()
    return total - used + (cpu.process_rss(os.getpid()) or 0)
