"""Rules of the model and the device: lengths, dtypes, offloading, experts."""

from __future__ import annotations

from core.config.facts import Facts, trains_on_cpu
from core.config.rules import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config


@rule("error", "train.max_length", "model.base")
def length_in_table(config: Config, facts: Facts) -> Findings:
    """train.max_length is not beyond the table of positions that the model has learned."""
    model, length = facts.model, config.train.max_length
    if model is not None and model.learned_positions and model.positions is not None and length > model.positions:
        yield (
            f"train.max_length is {length}, and the model has learned {model.positions} positions and no more.",
            f"Set it to {model.positions} at most.",
        )


@rule("warning", "train.max_length", "model.base")
def length_in_positions(config: Config, facts: Facts) -> Findings:
    """train.max_length is not beyond the length that the model was made for."""
    model, length = facts.model, config.train.max_length
    if model is not None and not model.learned_positions and model.positions is not None and length > model.positions:
        yield (
            f"train.max_length is {length}, and the model was made for rows of {model.positions} tokens at most.",
            f"Set it to {model.positions}; what it learns of positions beyond is of little use.",
        )


@rule("error", "train.precision", "hardware.device")
def fp16_needs_gpu(config: Config, facts: Facts) -> Findings:
    """A CPU does not train in fp16."""
    if config.train.precision == "fp16" and trains_on_cpu(config, facts):
        yield "train.precision is fp16, which trains badly on a CPU.", "Set it to auto, bf16 or fp32."


@rule("error", "train.precision", "hardware.device")
def bf16_needs_card(config: Config, facts: Facts) -> Findings:
    """bf16 needs a card that has it (NVIDIA from compute capability 8.0 on)."""
    if config.train.precision == "bf16" and facts.bf16 is False and not trains_on_cpu(config, facts):
        yield "train.precision is bf16, which this card does not have.", "Set it to auto or fp16."


@rule("warning", "train.optimizer", "hardware.device")
def paging_needs_gpu(config: Config, facts: Facts) -> Findings:
    """A paged optimizer needs a GPU to move its state from."""
    if config.train.optimizer == "paged_adamw_8bit" and trains_on_cpu(config, facts):
        yield "train.optimizer is paged_adamw_8bit, and on a CPU nothing is paged.", "Take adamw_8bit."


@rule("warning", "memory.activation_offload", "hardware.device")
def offload_needs_gpu(config: Config, facts: Facts) -> Findings:
    """memory.activation_offload needs a GPU to move activations from."""
    if config.memory.activation_offload == "on" and trains_on_cpu(config, facts):
        yield (
            "memory.activation_offload is on, and on a CPU all activations are in the machine's memory.",
            "Set it to auto.",
        )


@rule("error", "memory.activation_offload", "memory.gradient_checkpointing")
def offload_needs_recomputing(config: Config, _: Facts) -> Findings:
    """With memory.activation_offload = on, memory.gradient_checkpointing is not off."""
    if config.memory.activation_offload == "on" and config.memory.gradient_checkpointing == "off":
        yield (
            "memory.activation_offload moves what recomputing starts from, and memory.gradient_checkpointing is off.",
            "Set memory.gradient_checkpointing = on.",
        )


@rule("warning", "memory.offload_experts", "hardware.device")
def experts_need_gpu(config: Config, facts: Facts) -> Findings:
    """memory.offload_experts needs a GPU to move experts from."""
    if _offloads_experts(config) and trains_on_cpu(config, facts):
        yield ("memory.offload_experts is on, and on a CPU all experts are in the machine's memory.", "Set it to auto.")


@rule("warning", "memory.offload_experts", "model.base")
def offload_needs_experts(config: Config, facts: Facts) -> Findings:
    """memory.offload_experts is for mixtures of experts."""
    if _offloads_experts(config) and facts.model is not None and not facts.model.has_experts:
        yield "memory.offload_experts is on, and the model has no experts in 4 bits.", "Set it to auto."


@rule("warning", "method.target_experts", "model.base")
def adapted_experts_are_there(config: Config, facts: Facts) -> Findings:
    """method.target_experts = on is for mixtures of experts."""
    if config.method.name in WEIGHT_METHODS or config.method.target_experts != "on":
        return
    if facts.model is not None and not facts.model.has_experts:
        yield "method.target_experts is on, and the model has no experts that can have adapters.", "Set it to auto."


def _offloads_experts(config: Config) -> bool:
    return config.memory.offload_experts == "on" and config.method.name == "qlora"
