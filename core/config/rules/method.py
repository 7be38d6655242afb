"""Rules of ``method``: trained weights, adapters, their scale, their beginning, and the layers that have them."""

from __future__ import annotations

import math

from core.config.derived import updates_in_backward
from core.config.facts import Facts
from core.config.rules import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config
from core.config.targets import expression_problem, is_target, kept_patterns
from core.text import one_line


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


@rule("warning", "method.alpha", "method.rank")
def alpha_fits_rank(config: Config, _: Facts) -> Findings:
    """method.alpha is from half of method.rank to four times as much, unless method.rslora is on."""
    method = config.method
    scale = method.alpha / method.rank
    if not method.rslora and not 0.5 <= scale <= 4:
        effect = "little is learned" if scale < 0.5 else "training becomes unsteady"
        yield (
            f"method.alpha is {method.alpha:g} at rank {method.rank}: a scale of {scale:.3g}, with which {effect}.",
            f"Twice the rank is usual: method.alpha = {2 * method.rank}.",
        )


@rule("warning", "method.alpha", "method.rslora", "method.rank")
def alpha_fits_rslora(config: Config, _: Facts) -> Findings:
    """With method.rslora, method.alpha / sqrt(method.rank) is from 0.5 to 8."""
    method = config.method
    scale = method.alpha / math.sqrt(method.rank)
    if method.rslora and not 0.5 <= scale <= 8:
        effect = "little is learned" if scale < 0.5 else "training becomes unsteady"
        usual = max(round(2 * math.sqrt(method.rank)), 1)
        yield (
            f"method.rslora scales by alpha / sqrt(rank), here {scale:.3g}, with which {effect}.",
            f"Lower or raise alpha: about {usual} suits rank {method.rank}.",
        )


@rule("warning", "method.dora", "method.name")
def dora_on_4_bits(config: Config, _: Facts) -> Findings:
    """method.dora is slow on a 4-bit base."""
    if config.method.dora and config.method.name == "qlora":
        yield (
            "method.dora on a 4-bit base is slow: every weight is unpacked once more in every pass.",
            "Take method.name = lora if the model fits in 16 bits, or a higher rank without dora.",
        )


@rule("warning", "method.dropout", "method.dora")
def dora_with_dropout(config: Config, _: Facts) -> Findings:
    """method.dropout with method.dora computes every layer twice."""
    if config.method.dora and config.method.dropout > 0:
        yield "method.dropout with method.dora computes every adapted layer twice.", "Set method.dropout = 0."


@rule("warning", "method.dropout")
def dropout_is_small(config: Config, _: Facts) -> Findings:
    """method.dropout is at most 0.3."""
    if config.method.dropout > 0.3:
        yield f"method.dropout is {config.method.dropout:g}, with which little is learned.", "0 to 0.1 is usual."


@rule("error", "method.target_modules", "model.keep_16bit")
def patterns_can_be_read(config: Config, _: Facts) -> Findings:
    """A regular expression in method.target_modules or model.keep_16bit can be read, and repeats no group."""
    targets = config.method.target_modules
    entries = [("method.target_modules", entry) for entry in ([] if isinstance(targets, str) else targets)]
    entries += [("model.keep_16bit", entry) for entry in kept_patterns(config.model.keep_16bit)]
    for option, entry in entries:
        if (problem := expression_problem(entry)) is not None:
            yield (
                f"{option} has {one_line(entry, 60)}, which cannot be used: {problem}.",
                "Fix it, or write a name with * instead.",
            )


@rule("warning", "model.keep_16bit", "method.name")
def only_4_bits_leave_layers_out(config: Config, _: Facts) -> Findings:
    """model.keep_16bit is for method.name = qlora."""
    if config.model.keep_16bit is not None and config.method.name != "qlora":
        yield (
            f"model.keep_16bit is set, and with method.name = {config.method.name} all layers are in 16 bit.",
            "Remove it, or set method.name = qlora.",
        )


@rule("error", "model.adapter", "method.name")
def only_adapters_begin_from_one(config: Config, _: Facts) -> Findings:
    """model.adapter is for method.name = qlora or lora."""
    if config.model.adapter is not None and config.method.name in WEIGHT_METHODS:
        yield (
            f"model.adapter is set, and method.name = {config.method.name} trains no adapter.",
            "Remove it, or set method.name = qlora.",
        )


@rule("warning", "model.keep_16bit", "model.base")
def kept_layers_are_there(config: Config, facts: Facts) -> Findings:
    """Every entry of model.keep_16bit is the name of a layer of the model."""
    model, entries = facts.model, kept_patterns(config.model.keep_16bit)
    if model is None or not entries or config.method.name != "qlora":
        return
    names = [linear.name for linear in model.linears]
    layers = (layer for layer in model.layers for _ in range(layer.count))
    names += [f"{model.prefix}.{number}.{one.name}" for number, layer in enumerate(layers) for one in layer.linears]
    for entry in entries:
        # Experts have other names in each family.
        if "expert" in entry and model.has_experts:
            continue
        if expression_problem(entry) is None and not any(is_target(name, entry) for name in names):
            yield (
                f"model.keep_16bit has {one_line(entry, 60)}, and no layer of the model has that name.",
                'Take a name like "layers.0.*" or "down_proj"; \'localtune-tui bits\' finds out which are worth it.',
            )


@rule("error", "method.init", "method.name")
def loftq_needs_4_bits(config: Config, _: Facts) -> Findings:
    """method.init = loftq needs method.name = qlora."""
    if config.method.init == "loftq" and config.method.name != "qlora":
        yield (
            "method.init is loftq, which makes up for the rounding to 4 bits, and method.name = "
            f"{config.method.name} rounds nothing.",
            "Take method.name = qlora, or method.init = pissa.",
        )


@rule("error", "method.init", "method.dora")
def dora_begins_plainly(config: Config, _: Facts) -> Findings:
    """method.dora begins from the weights as they are, which no method.init but default leaves."""
    if config.method.dora and config.method.init != "default":
        yield (
            f"method.init is {config.method.init}, and method.dora measures its magnitudes on weights that adapters "
            "have not changed yet.",
            "Set method.init = default, or turn method.dora off.",
        )


@rule("error", "method.target_experts", "method.dora", "method.init", "method.name")
def experts_begin_plainly(config: Config, _: Facts) -> Findings:
    """method.target_experts = on needs method.init = default, and no method.dora."""
    method = config.method
    if method.name in WEIGHT_METHODS or method.target_experts != "on":
        return
    if method.dora:
        yield (
            "method.target_experts is on, and method.dora has no magnitudes for experts.",
            "Set method.dora = false, or method.target_experts = off.",
        )
    if method.init != "default":
        yield (
            f"method.target_experts is on, and method.init = {method.init} is computed for linear layers only.",
            "Set method.init = default, or method.target_experts = off.",
        )


@rule("warning", "method.dropout", "method.init")
def dropout_from_the_beginning(config: Config, _: Facts) -> Findings:
    """With method.init = pissa, method.dropout is 0."""
    if config.method.init == "pissa" and config.method.dropout > 0:
        yield (
            "method.dropout drops from the main directions of the weights, with which method.init = pissa begins.",
            "Set method.dropout = 0.",
        )


@rule("warning", "method.loraplus_ratio", "train.learning_rate")
def ratio_suits_rate(config: Config, _: Facts) -> Findings:
    """train.learning_rate times method.loraplus_ratio is below 1e-2."""
    ratio, rate = config.method.loraplus_ratio, config.train.learning_rate
    if ratio is not None and rate < 1e-2 <= rate * ratio:
        yield (
            f"method.loraplus_ratio is {ratio:g}: the adapters' second matrices learn at {rate * ratio:.3g}, "
            "with which they diverge.",
            f"Lower train.learning_rate to {4e-3 / ratio:.1g} or less.",
        )
