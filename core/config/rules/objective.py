"""Rules of ``train.objective``: the loss, and the rows that it needs."""

from __future__ import annotations

from core.config.choices import COMPARED, LEARNED
from core.config.facts import Facts
from core.config.rules import Findings, rule
from core.config.schema import Config


@rule("error", "train.objective", "data.format")
def objective_suits_format(config: Config, _: Facts) -> Findings:
    """data.format suits train.objective."""
    objective, held = config.train.objective, config.data.format
    wanted = LEARNED.get(objective)
    if held == "auto":
        return
    if wanted is not None and held != wanted:
        yield (
            f"data.format is {held}, and train.objective is {objective}, which learns from {COMPARED[wanted]}.",
            f"Set data.format = {wanted}, or train.objective = sft.",
        )
    elif wanted is None and held in COMPARED:
        fitting = "kto" if held == "kto" else "dpo"
        yield (
            f"data.format is {held}, and train.objective is sft, which learns answers as they are.",
            f"Set train.objective = {fitting}.",
        )


@rule("error", "train.objective", "data.supervise")
def objective_compares_answers(config: Config, _: Facts) -> Findings:
    """With a train.objective other than sft, data.supervise is not all."""
    if config.train.objective != "sft" and config.data.supervise == "all":
        yield (
            f"data.supervise is all, and train.objective = {config.train.objective} compares answers, not questions.",
            "Set data.supervise = assistant.",
        )


@rule("error", "method.init", "train.objective")
def reference_is_the_base(config: Config, _: Facts) -> Findings:
    """With train.objective = dpo or kto, method.init is not loftq, with which training does not begin at the base."""
    objective, method = config.train.objective, config.method
    if objective in ("dpo", "kto") and method.init == "loftq" and method.name == "qlora":
        yield (
            "method.init is loftq, whose adapters have an effect from the beginning, and "
            f"train.objective = {objective} compares with the base without them.",
            "Set method.init = default, or train.objective = orpo.",
        )


@rule("error", "train.packing", "method.neftune_alpha")
def noise_is_for_padded_rows(config: Config, _: Facts) -> Findings:
    """With train.packing, method.neftune_alpha is absent."""
    if config.train.packing and config.method.neftune_alpha is not None:
        yield (
            "train.packing is true, and method.neftune_alpha puts noise on each row of a padded batch.",
            "Set train.packing = false, or leave method.neftune_alpha out.",
        )


@rule("error", "train.packing", "train.fused_layers")
def packing_needs_layout(config: Config, _: Facts) -> Findings:
    """train.packing needs train.fused_layers, whose attention keeps rows apart."""
    if config.train.packing and not config.train.fused_layers:
        yield (
            "train.packing is true, and train.fused_layers, whose attention keeps packed rows apart, is false.",
            "Set train.fused_layers = true, or train.packing = false.",
        )


@rule("error", "method.neftune_alpha", "train.objective")
def noise_is_for_answers(config: Config, _: Facts) -> Findings:
    """method.neftune_alpha is for train.objective = sft."""
    if config.method.neftune_alpha is not None and config.train.objective != "sft":
        yield (
            f"method.neftune_alpha makes answers less certain, which train.objective = {config.train.objective} "
            "compares.",
            "Remove it.",
        )


@rule("warning", "train.dpo_loss", "train.objective")
def loss_of_pairs(config: Config, _: Facts) -> Findings:
    """train.dpo_loss is for train.objective = dpo."""
    train = config.train
    if train.dpo_loss != "sigmoid" and train.objective != "dpo":
        yield (
            f"train.dpo_loss is {train.dpo_loss}, and with train.objective = {train.objective} it does nothing.",
            "Remove it, or set train.objective = dpo.",
        )


@rule("warning", "train.desirable_weight", "train.undesirable_weight", "train.objective")
def weights_of_labels(config: Config, _: Facts) -> Findings:
    """train.desirable_weight and train.undesirable_weight are for train.objective = kto."""
    train = config.train
    if train.objective != "kto" and (train.desirable_weight, train.undesirable_weight) != (1.0, 1.0):
        yield (
            f"The weights of good and bad answers are set, and with train.objective = {train.objective} they do "
            "nothing.",
            "Remove them, or set train.objective = kto.",
        )


@rule("warning", "train.batch_size", "train.objective")
def divergence_needs_rows(config: Config, _: Facts) -> Findings:
    """With train.objective = kto, train.batch_size is 4 or more."""
    if config.train.objective == "kto" and config.train.batch_size < 4:
        yield (
            f"train.batch_size is {config.train.batch_size}, and kto measures on each step's rows how far the model is "
            "from its beginnings.",
            "Set it to 8 or more.",
        )
