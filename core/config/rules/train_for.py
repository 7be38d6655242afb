"""Rules of ``method.train_for``: training of the weights that a file will have."""

from __future__ import annotations

from collections.abc import Iterator

from core.config.derived import updates_in_backward
from core.config.facts import Facts
from core.config.rules import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config


def _hinders_file(config: Config) -> Iterator[tuple[str, str]]:
    """The conflicts of method.train_for, each with its remedy."""
    method, train = config.method, config.train
    if method.name in WEIGHT_METHODS:
        yield f"method.name is {method.name}, which has no adapters to merge", "Set method.name = lora or qlora"
    if method.dora:
        yield "method.dora scales the sum that is rounded", "Set method.dora = false"
    if method.init == "pissa":
        yield "method.init = pissa has a second adapter in each layer", "Set method.init = default"
    if method.dropout > 0:
        yield (
            "method.dropout is above 0, and merged weights have no input of their own to drop",
            "Set method.dropout = 0",
        )
    if method.target_modules != "all-linear":
        yield (
            "method.target_modules leaves layers out, which the file rounds as well",
            "Set method.target_modules = all-linear",
        )
    if train.objective in ("dpo", "kto"):
        yield f"train.objective = {train.objective} compares with the base, which is not rounded", "Take sft or orpo"
    if train.compile:
        yield "train.compile replaces the layers that round", "Set train.compile = false"
    if not train.fused_layers:
        yield "train.fused_layers is false, and they are the layers that round", "Set train.fused_layers = true"


@rule(
    "error",
    "method.train_for",
    "method.name",
    "method.dora",
    "method.init",
    "method.dropout",
    "method.target_modules",
    "train.objective",
    "train.compile",
    "train.fused_layers",
)
def trains_for_file(config: Config, _: Facts) -> Findings:
    """method.train_for needs adapters on all-linear without method.dora, pissa and method.dropout, train.fused_layers
    without train.compile, and train.objective sft or orpo."""
    if config.method.train_for is not None:
        for sentence, hint in _hinders_file(config):
            yield f"method.train_for is {config.method.train_for}, and {sentence}.", f"{hint}, or leave it out."


@rule("error", "train.max_hours", "train.max_energy_wh", "method.train_for")
def limits_leave_the_file(config: Config, _: Facts) -> Findings:
    """train.max_hours and train.max_energy_wh do not go with method.train_for."""
    for name in ("max_hours", "max_energy_wh"):
        if config.method.train_for is not None and getattr(config.train, name) is not None:
            yield (
                f"train.{name} could end the run before its last third, which trains the weights of the file.",
                f"Leave train.{name} or method.train_for out.",
            )


@rule("error", "train.on_loss_spike", "memory.optimizer_in_backward", "method.name")
def skips_whole_updates(config: Config, _: Facts) -> Findings:
    """train.on_loss_spike = skip does not go with updates inside backward."""
    if config.train.on_loss_spike == "skip" and updates_in_backward(config):
        yield (
            "train.on_loss_spike is skip, but with updates inside backward the weights have changed when the loss is "
            "known.",
            "Set it to rollback, or memory.optimizer_in_backward = off.",
        )


@rule("warning", "method.train_for")
def file_gains(config: Config, _: Facts) -> Findings:
    """method.train_for = q8_0 is for the certainty that the file has the weights that were measured."""
    if config.method.train_for == "q8_0":
        yield (
            "method.train_for is q8_0, which loses almost nothing, so that training for it gained nothing measurable.",
            "Leave it out, or take q4_0 for a file of half the size.",
        )


@rule("error", "method.train_for", "model.base")
def file_has_whole_blocks(config: Config, facts: Facts) -> Findings:
    """method.train_for is for models whose matrices have rows of whole blocks of 32 weights, and no experts."""
    model = facts.model
    if config.method.train_for is None or model is None:
        return
    if model.has_experts or model.bare_experts:
        yield "method.train_for is set, and the model has experts, which have no merged layers.", "Leave it out."
    elif any(linear.inputs % 32 for layer in model.layers for linear in layer.linears) or model.hidden % 32:
        yield (
            "method.train_for is set, and the model has rows that are not whole blocks of 32 weights.",
            "Leave it out: such layers are kept in more bits.",
        )
