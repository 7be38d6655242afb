"""Rules of training the weights themselves, without adapters."""

from __future__ import annotations

from core.config.derived import updates_in_backward
from core.config.facts import Facts
from core.config.rules.rule import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config


@rule("error", "train.precision", "method.name")
def weights_not_in_fp16(config: Config, _: Facts) -> Findings:
    """Weights that are trained themselves are not fp16."""
    if config.method.name in WEIGHT_METHODS and config.train.precision == "fp16":
        yield (
            f"method.name is {config.method.name}, and weights that are trained cannot be fp16.",
            "Set train.precision = auto.",
        )


@rule("error", "train.micro_batch_size", "memory.optimizer_in_backward", "train.batch_size")
def no_accumulation_in_backward(config: Config, _: Facts) -> Findings:
    """With updates inside backward a step is one pass, so train.micro_batch_size is not below train.batch_size."""
    micro, batch = config.train.micro_batch_size, config.train.batch_size
    if updates_in_backward(config) and micro is not None and micro < batch:
        yield (
            f"train.micro_batch_size is {micro} and train.batch_size {batch}, but with updates inside backward weights "
            "change in the first pass, so gradients cannot be added up over several.",
            f"Set train.batch_size = {micro}, or memory.optimizer_in_backward = off.",
        )


@rule("warning", "memory.optimizer_in_backward", "method.name")
def backward_updates_weights(config: Config, _: Facts) -> Findings:
    """memory.optimizer_in_backward is for method.name full or freeze."""
    if config.memory.optimizer_in_backward == "on" and config.method.name not in WEIGHT_METHODS:
        yield (
            f"memory.optimizer_in_backward is on, but with method.name = {config.method.name} it does nothing: the "
            "gradients of adapters are small.",
            "Set it to auto.",
        )


@rule("warning", "train.max_grad_norm", "memory.optimizer_in_backward")
def no_norm_in_backward(config: Config, _: Facts) -> Findings:
    """train.max_grad_norm is not set with updates inside backward."""
    if updates_in_backward(config) and config.train.max_grad_norm and "max_grad_norm" in config.train.model_fields_set:
        yield (
            "train.max_grad_norm cannot be kept with updates inside backward: the norm is known when all is done.",
            "Set it to 0, or memory.optimizer_in_backward = off.",
        )
