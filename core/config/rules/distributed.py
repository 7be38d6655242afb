"""Rules of ``distributed``: several processes, and the limits of each strategy."""

from __future__ import annotations

from core import deepspeed
from core.config.derived import ALL_GPUS, refusal_of_machines, wants_several
from core.config.facts import Facts
from core.config.rules import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config


@rule("error", "distributed.strategy", "distributed.processes", "distributed.gpus")
def one_process_without_strategy(config: Config, _: Facts) -> Findings:
    """distributed.strategy = none is for one process."""
    if config.distributed.strategy == "none" and wants_several(config):
        yield (
            "distributed.strategy is none, and the run is to have more than one process.",
            "Set it to auto, or leave distributed.processes and distributed.gpus out.",
        )


@rule("error", "distributed.hosts")
def slurm_and_torchrun_start_machines(config: Config, _: Facts) -> Findings:
    """distributed.hosts is not set: Slurm or torchrun starts a run on several machines."""
    if (refusal := refusal_of_machines(config)) is not None:
        yield refusal


@rule("error", "distributed.processes", "distributed.gpus")
def a_card_for_each_process(config: Config, _: Facts) -> Findings:
    """distributed.processes is not more than the cards of distributed.gpus, unless that is all."""
    named, wanted = config.distributed.named_gpus, config.distributed.processes
    if named and ALL_GPUS not in named and wanted is not None and wanted > len(named):
        yield (
            f"distributed.processes is {wanted}, and distributed.gpus names {len(named)}.",
            "Name a card for each, or leave distributed.processes out.",
        )


@rule("error", "distributed.gpus")
def cards_are_named_once(config: Config, _: Facts) -> Findings:
    """distributed.gpus names every card once, or is all."""
    named = config.distributed.named_gpus
    if len(set(named)) < len(named):
        yield "distributed.gpus names a card twice.", "Each process has a card of its own: name others."
    elif ALL_GPUS in named and len(named) > 1:
        yield "distributed.gpus has all and other names.", "Leave one of them out."


@rule("error", "distributed.gpus", "hardware.gpu")
def one_way_to_name_cards(config: Config, _: Facts) -> Findings:
    """hardware.gpu and distributed.gpus do not both name cards, and with hardware.gpu there is one process."""
    several = (config.distributed.processes or 1) > 1
    if config.hardware.gpu is not None and (config.distributed.named_gpus or several):
        what = "distributed.gpus names others" if config.distributed.named_gpus else "distributed.processes wants more"
        yield f"hardware.gpu names one card, and {what}.", "Remove hardware.gpu, and name them in distributed.gpus."


@rule("error", "memory.optimizer_in_backward", "distributed.processes", "distributed.gpus")
def no_sum_in_backward(config: Config, _: Facts) -> Findings:
    """With more than one process, memory.optimizer_in_backward is not on."""
    wanted, method = config.memory.optimizer_in_backward, config.method.name
    if wanted == "on" and method in WEIGHT_METHODS and wants_several(config):
        yield (
            "memory.optimizer_in_backward is on, and the gradients of several processes are added up after backward.",
            "Set it to auto.",
        )


@rule("warning", "train.batch_size", "distributed.processes")
def rows_for_each_process(config: Config, _: Facts) -> Findings:
    """train.batch_size has a row for each process at least."""
    processes = config.distributed.processes or len(config.distributed.named_gpus) or 1
    if config.train.batch_size < processes:
        yield (
            f"train.batch_size is {config.train.batch_size}, and {processes} processes share the rows of a step.",
            f"Set it to {processes} or more: some have nothing to do otherwise.",
        )


@rule("warning", "distributed.zero_stage", "distributed.strategy")
def stage_of_deepspeed(config: Config, _: Facts) -> Findings:
    """distributed.zero_stage is for distributed.strategy = deepspeed."""
    distributed = config.distributed
    if distributed.zero_stage != 2 and distributed.strategy != "deepspeed":
        yield (
            f"distributed.zero_stage is {distributed.zero_stage}, and with distributed.strategy = "
            f"{distributed.strategy} it does nothing.",
            "Set distributed.strategy = deepspeed, or remove it.",
        )


@rule("warning", "distributed.offload", "distributed.strategy")
def offload_of_shares(config: Config, _: Facts) -> Findings:
    """distributed.offload is for distributed.strategy = fsdp2 or deepspeed, or auto where that takes fsdp2."""
    if config.distributed.offload != "none" and config.distributed.strategy in ("none", "replicate"):
        yield (
            f"distributed.offload is {config.distributed.offload}, and with distributed.strategy = "
            f"{config.distributed.strategy} nothing is shared out that could be moved.",
            "Set distributed.strategy = fsdp2, or remove it.",
        )


@rule("error", "distributed.strategy", "train.objective", "train.optimizer", "method.train_for", "method.name")
def shares_are_no_whole_weights(config: Config, _: Facts) -> Findings:
    """distributed.strategy = fsdp2 does not support methods that need whole weights: dpo and kto with adapters,
    optimizers of trained weights other than AdamW, method.train_for."""
    if config.distributed.strategy != "fsdp2":
        return
    trains_weights, train = config.method.name in WEIGHT_METHODS, config.train
    if train.objective in ("dpo", "kto") and not trains_weights:
        yield (
            f"distributed.strategy is fsdp2, and the reference of {train.objective} is the model without its adapters.",
            "Set distributed.strategy = replicate, or train.objective = sft or orpo.",
        )
    if trains_weights and train.optimizer != "adamw":
        yield (
            f"distributed.strategy is fsdp2, and the states of {train.optimizer} belong to whole tensors.",
            "Set train.optimizer = adamw, or distributed.strategy = replicate.",
        )
    if config.method.train_for is not None:
        yield (
            "distributed.strategy is fsdp2, and method.train_for needs whole weights.",
            "Set distributed.strategy = replicate, or leave method.train_for out.",
        )


@rule("error", "distributed.strategy", "train.optimizer", "train.precision", "method.train_for")
def what_deepspeed_trains(config: Config, _: Facts) -> Findings:
    """distributed.strategy = deepspeed trains with adamw, in bf16 or fp32, and not for a file (method.train_for)."""
    if config.distributed.strategy != "deepspeed":
        return
    train = config.train
    if train.optimizer != "adamw":
        yield (
            f"distributed.strategy is deepspeed, and the states of {train.optimizer} cannot be shared out by it.",
            "Set train.optimizer = adamw, or distributed.strategy = replicate.",
        )
    if train.precision == "fp16":
        yield (
            "distributed.strategy is deepspeed, and train.precision fp16 needs a scaler of its own there.",
            "Set train.precision = auto, or distributed.strategy = replicate.",
        )
    if config.method.train_for is not None:
        yield (
            "distributed.strategy is deepspeed, and method.train_for needs its weights as they are.",
            "Set distributed.strategy = replicate, or leave method.train_for out.",
        )


@rule(
    "error",
    "distributed.zero_stage",
    "distributed.strategy",
    "train.objective",
    "method.dora",
    "method.init",
    "method.name",
)
def what_the_third_stage_trains(config: Config, _: Facts) -> Findings:
    """distributed.zero_stage = 3 is not for adapters that need whole weights: dpo and kto, method.dora, and method.init
    pissa and loftq."""
    if config.distributed.strategy != "deepspeed" or config.distributed.zero_stage != 3:
        return
    if config.method.name in WEIGHT_METHODS:
        return
    method, objective = config.method, config.train.objective
    if objective in ("dpo", "kto"):
        yield (
            f"distributed.zero_stage is 3, and the reference of {objective} is the model without its adapters.",
            "Set distributed.zero_stage = 2, or train.objective = sft or orpo.",
        )
    if method.dora:
        yield (
            "distributed.zero_stage is 3, and method.dora takes the norms of whole weights.",
            "Set distributed.zero_stage = 2, or method.dora = false.",
        )
    if method.init != "default":
        yield (
            f"distributed.zero_stage is 3, and method.init = {method.init} has a second adapter beside the first.",
            "Set distributed.zero_stage = 2, or method.init = default.",
        )


@rule("error", "distributed.strategy", "distributed.processes", "distributed.gpus")
def deepspeed_is_installed(config: Config, facts: Facts) -> Findings:
    """DeepSpeed is installed where more than one process has distributed.strategy = deepspeed."""
    wanted = config.distributed.strategy == "deepspeed" and wants_several(config)
    if wanted and facts.has_deepspeed is False:
        yield deepspeed.MISSING
