"""The memory plan of a run that is about to train: whether activations are recomputed, and what is put beside what the
rehearsal measures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from core.config.schema import Config
from core.errors import UserError
from core.hardware import cpu
from core.memory.model_files import find_model, load_architecture
from core.memory.plan import CUDA_RUNTIME, DeviceKind, Machine, Plan, make_plan
from core.memory.rows import rows_of_tokens
from core.memory.sizes import sequences_per_row
from core.units import format_bytes
from core.worker.batches import supervised_count

if TYPE_CHECKING:
    from core.worker.dataset import Dataset
    from core.worker.gradients import WindowGradients


def predict_memory(
    config: Config, device: str, dataset: Dataset, windows: WindowGradients, *, dequantized: bool = False
) -> dict[str, int] | None:
    """What the plan says of a run, its micro-batches and checkpointing as they are now.

    Args:
        config: Of the run.
        device: ``cpu`` or ``cuda``.
        dataset: What is trained on.
        windows: Has decided how rows are cut.
        dequantized: Whether 16-bit copies of 4-bit weights are kept.

    Returns:
        Part to bytes; None for a model whose memory cannot be told, which is no reason not to train it.
    """
    machine = Machine(_kind(device), bf16=cpu.has_bf16())
    plan = _plan(config, machine, dataset, windows, dequantized=dequantized)
    return None if plan is None else plan.by_name()


def decide_checkpointing(
    config: Config, device: torch.device, dataset: Dataset, windows: WindowGradients
) -> tuple[bool, str]:
    """Whether activations are recomputed in backward from the beginning, and why, in a sentence.

    ``auto`` follows the plan, with the memory that is free for the run now that its model is loaded.
    """
    wanted = config.memory.gradient_checkpointing
    if wanted != "auto":
        what = "recomputed" if wanted == "on" else "kept unless memory runs out"
        return wanted == "on", f"Activations are {what}: memory.gradient_checkpointing = {wanted}."
    limit = _limit(device)
    machine = Machine(_kind(device.type), limit_bytes=limit, bf16=cpu.has_bf16())
    plan = _plan(config, machine, dataset, windows, all_kept=True, dequantized=config.memory.keep_dequantized == "on")
    if plan is None:
        return False, "Activations are kept unless memory runs out: the memory of this model cannot be planned."
    needed, free = format_bytes(plan.needed_bytes), format_bytes(limit)
    if plan.fits:
        return False, f"Activations are kept: the run would take {needed} of {free}."
    return True, f"Activations are recomputed: with all of them kept the run would take {needed}, and {free} are free."


def keeps_dequantized(config: Config, device: torch.device, dataset: Dataset, windows: WindowGradients) -> bool:
    """Whether 16-bit copies of 4-bit weights are kept: as ``memory.keep_dequantized`` says, or by the plan."""
    machine = Machine(_kind(device.type), limit_bytes=_limit(device), bf16=cpu.has_bf16())
    plan = _plan(config, machine, dataset, windows)
    return plan is not None and plan.dequantized


def _plan(
    config: Config,
    machine: Machine,
    dataset: Dataset,
    windows: WindowGradients,
    *,
    all_kept: bool = False,
    dequantized: bool | None = None,
) -> Plan | None:
    try:
        return make_plan(
            load_architecture(find_model(config.model.base)),
            config,
            machine,
            rows_of_tokens(
                dataset.lengths,
                sum(map(supervised_count, dataset.rows)) // sequences_per_row(config.train.objective),
            ),
            token_budget=windows.token_budget,
            checkpointing=windows.checkpointing and not all_kept,
            dequantized=dequantized,
        )
    except UserError:
        return None


def _kind(device: str) -> DeviceKind:
    return "cuda" if device == "cuda" else "cpu"


def _limit(device: torch.device) -> int:
    """Memory for the whole run: what is free, and what the run has taken already, as the plan counts both."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) + CUDA_RUNTIME
    used, total = cpu.memory()
    return total - used + (cpu.process_rss(os.getpid()) or 0)
