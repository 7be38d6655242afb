"""Rules between options: combinations that are impossible, and those that are most likely a mistake.

An error keeps a run from starting; a warning is shown and the run goes on. A rule looks at a valid configuration and at
the known facts, and is silent about anything unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from core import deepspeed
from core.config.choices import COMPARED, GIVEN_VARIABLES, LEARNED
from core.config.clock import parse_span, parse_time
from core.config.derived import ALL_GPUS, step_count, updates_in_backward, wants_several
from core.config.facts import Facts
from core.config.gate import Figure, bar_texts, parse_bar
from core.config.schema import WEIGHT_METHODS, Config
from core.config.sixteen_bit import kept_patterns
from core.config.targets import expression_problem, is_target
from core.errors import UserError
from core.models.architecture.architecture import Architecture
from core.text import one_line
from core.units import format_bytes

Level = Literal["error", "warning"]
#: A sentence and a hint for each time that a rule is broken.
Findings = Iterator[tuple[str, str]]

_NO_EVAL = "Set data.eval or data.eval_share, or remove it."


@dataclass(frozen=True)
class Remark:
    """A rule's finding about a configuration.

    Args:
        level: ``error`` or ``warning``.
        options: The options concerned, the one to change first.
        sentence: The problem.
        hint: The remedy.
    """

    level: Level
    options: tuple[str, ...]
    sentence: str
    hint: str


@dataclass(frozen=True)
class Rule:
    """A rule: its level, the options concerned, and the check, whose docstring states the requirement to users."""

    level: Level
    options: tuple[str, ...]
    check: Callable[[Config, Facts], Findings]

    @property
    def says(self) -> str:
        """The requirement, in a sentence."""
        return " ".join((self.check.__doc__ or "").split())


#: All rules, in the order of their findings.
RULES: list[Rule] = []


def check_rules(config: Config, facts: Facts | None = None) -> list[Remark]:
    """The findings of all rules, errors first.

    Args:
        config: A valid configuration.
        facts: Known facts; none by default.
    """
    known = facts or Facts()
    found = [
        Remark(rule.level, rule.options, sentence, hint)
        for rule in RULES
        for sentence, hint in rule.check(config, known)
    ]
    return sorted(found, key=lambda remark: remark.level != "error")


def _rule(level: Level, *options: str) -> Callable[[Callable[[Config, Facts], Findings]], None]:
    def register(check: Callable[[Config, Facts], Findings]) -> None:
        RULES.append(Rule(level, options, check))

    return register


def _trains_on_cpu(config: Config, facts: Facts) -> bool:
    return config.hardware.device == "cpu" or (config.hardware.device == "auto" and facts.device == "cpu")


def _has_eval(config: Config) -> bool:
    return config.data.eval is not None or config.data.eval_share > 0


# The data.


@_rule("error", "data.weights", "data.train")
def _weights_match_entries(config: Config, _: Facts) -> Findings:
    """data.weights has one number for each entry of data.train."""
    entries = 1 if isinstance(config.data.train, str) else len(config.data.train)
    weights = config.data.weights
    if weights and len(weights) != entries:
        entry = "entry" if entries == 1 else "entries"
        yield f"data.weights has {len(weights)} numbers and data.train {entries} {entry}.", "Give one for each entry."


@_rule("error", "data.eval_share", "data.eval")
def _one_way_to_hold_out(config: Config, _: Facts) -> Findings:
    """Only one of data.eval and data.eval_share says what is held out."""
    if config.data.eval is not None and config.data.eval_share > 0:
        yield "data.eval and data.eval_share both say what is held out.", "Remove one of the two."


@_rule("error", "eval.every_epochs", "eval.every_steps")
def _one_interval(config: Config, _: Facts) -> Findings:
    """Only one of eval.every_steps and eval.every_epochs says how often it is measured."""
    if config.eval.every_steps is not None and config.eval.every_epochs is not None:
        yield "eval.every_steps and eval.every_epochs both say how often it is measured.", "Remove one of the two."


@_rule("warning", "eval.every_steps", "eval.every_epochs", "data.eval", "data.eval_share", "eval.prompts")
def _eval_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.every_steps and eval.every_epochs need held-out rows, or prompts to answer."""
    if _has_eval(config) or config.eval.prompts is not None:
        return
    for name in ("every_steps", "every_epochs"):
        if getattr(config.eval, name) is not None:
            yield f"eval.{name} is set, but there are no held-out rows to measure on.", _NO_EVAL


@_rule("error", "checkpoint.final", "data.eval", "data.eval_share")
def _best_needs_rows(config: Config, _: Facts) -> Findings:
    """checkpoint.final = "best" needs held-out rows."""
    if config.checkpoint.final == "best" and not _has_eval(config):
        yield "checkpoint.final is best, but there are no held-out rows to tell which step is.", _NO_EVAL


@_rule("error", "eval.patience", "data.eval", "data.eval_share")
def _patience_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.patience needs held-out rows."""
    if config.eval.patience is not None and not _has_eval(config):
        yield "eval.patience is set, but there are no held-out rows whose loss could stop falling.", _NO_EVAL


@_rule("warning", "eval.patience", "eval.every_steps", "eval.every_epochs")
def _patience_needs_interval(config: Config, _: Facts) -> Findings:
    """eval.patience needs evaluations before the end."""
    often = config.eval.every_steps is not None or config.eval.every_epochs is not None
    if config.eval.patience is not None and _has_eval(config) and not often:
        yield (
            "eval.patience is set, but it is measured at the end only, when there is nothing left to end.",
            "Set eval.every_steps or eval.every_epochs.",
        )


@_rule("warning", "eval.exact_match", "data.eval", "data.eval_share", "data.format")
def _exact_match_needs_questions(config: Config, _: Facts) -> Findings:
    """eval.exact_match needs held-out rows, and rows with questions and answers."""
    if config.eval.exact_match and not _has_eval(config):
        yield "eval.exact_match is on, but there are no held-out rows to ask.", _NO_EVAL
    elif config.eval.exact_match and config.data.format in ("text", "tokens"):
        yield f"eval.exact_match is on, but rows of {config.data.format} have no question to ask.", "Turn it off."


@_rule("warning", "eval.baseline", "data.eval", "data.eval_share")
def _baseline_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.baseline needs held-out rows."""
    if config.eval.baseline and not _has_eval(config):
        yield "eval.baseline is on, but there are no held-out rows to measure on.", _NO_EVAL


@_rule("error", "eval.gate")
def _gate_is_read(config: Config, _: Facts) -> Findings:
    """eval.gate has a figure, a comparison and a number or a part of before in each of its bars."""
    for text in bar_texts(config.eval.gate):
        try:
            parse_bar(text)
        except UserError as error:
            yield f"eval.gate: {error.message}", error.hint


@_rule("error", "eval.gate", "data.eval", "data.eval_share")
def _gate_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.gate needs held-out rows."""
    if config.eval.gate is not None and not _has_eval(config):
        yield "eval.gate is set, but there are no held-out rows to judge the result by.", _NO_EVAL


@_rule("error", "eval.gate", "eval.exact_match", "eval.baseline", "eval.probe", "train.objective")
def _gate_is_measured(config: Config, _: Facts) -> Findings:
    """eval.gate has bars for figures that are measured: with exact_match and valid_json eval.exact_match, with before
    eval.baseline, with probe_loss eval.probe, rewards with an objective that has them, perplexity without."""
    compares = config.train.objective in LEARNED
    missing: dict[Figure, tuple[bool, str]] = {
        "exact_match": (not config.eval.exact_match, "Set eval.exact_match = true."),
        "valid_json": (not config.eval.exact_match, "Set eval.exact_match = true."),
        "probe_loss": (not config.eval.probe, "Set eval.probe = true."),
        "reward_accuracy": (not compares, "It is a figure of preference training."),
        "reward_margin": (not compares, "It is a figure of preference training."),
        "perplexity": (compares, "Preference training has none; take loss."),
    }
    for text in bar_texts(config.eval.gate):
        try:
            bar = parse_bar(text)
        except UserError:
            continue  # another rule says so
        is_missing, hint = missing.get(bar.figure, (False, ""))
        if is_missing:
            yield f"eval.gate asks for {bar.figure}, which is not measured.", hint
        elif bar.needs_before and bar.figure != "probe_loss" and not config.eval.baseline:
            yield f"eval.gate compares {bar.figure} with before, which is not measured.", "Set eval.baseline = true."


@_rule("error", "template.name", "template.file")
def _one_template(config: Config, _: Facts) -> Findings:
    """Only one of template.name and template.file names the chat template."""
    if config.template.name is not None and config.template.file is not None:
        yield "template.name and template.file are both set.", "Remove one of the two."


@_rule("error", "template.variables", "template.name")
def _variables_of_a_template(config: Config, _: Facts) -> Findings:
    """template.variables are variables that a template may have, and that of template.name has none."""
    for name in config.template.variables or ():
        if name in GIVEN_VARIABLES:
            yield f"template.variables sets {name}, which every rendering is given.", "Remove it."
    if config.template.variables and config.template.name is not None:
        yield (
            f"The template {config.template.name} has no variables, and template.variables sets some.",
            "Remove one of the two.",
        )


# The objective.


@_rule("error", "train.objective", "data.format")
def _objective_suits_format(config: Config, _: Facts) -> Findings:
    """data.format is one that train.objective learns from."""
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


@_rule("error", "train.objective", "data.supervise")
def _objective_compares_answers(config: Config, _: Facts) -> Findings:
    """With a train.objective other than sft, data.supervise is not all."""
    if config.train.objective != "sft" and config.data.supervise == "all":
        yield (
            f"data.supervise is all, and train.objective = {config.train.objective} compares answers, not questions.",
            "Set data.supervise = assistant.",
        )


@_rule("error", "method.init", "train.objective")
def _reference_is_the_base(config: Config, _: Facts) -> Findings:
    """With train.objective = dpo or kto, method.init is not loftq, with which training does not begin at the base."""
    objective, method = config.train.objective, config.method
    if objective in ("dpo", "kto") and method.init == "loftq" and method.name == "qlora":
        yield (
            "method.init is loftq, whose adapters have an effect from the beginning, and "
            f"train.objective = {objective} compares with the base without them.",
            "Set method.init = default, or train.objective = orpo.",
        )


@_rule("error", "train.packing", "method.neftune_alpha")
def _noise_is_for_padded_rows(config: Config, _: Facts) -> Findings:
    """With train.packing, method.neftune_alpha is absent."""
    if config.train.packing and config.method.neftune_alpha is not None:
        yield (
            "train.packing is true, and method.neftune_alpha puts noise on each row of a padded batch.",
            "Set train.packing = false, or leave method.neftune_alpha out.",
        )


@_rule("error", "train.packing", "train.fused_layers")
def _packing_needs_layout(config: Config, _: Facts) -> Findings:
    """train.packing needs train.fused_layers, whose attention keeps rows apart."""
    if config.train.packing and not config.train.fused_layers:
        yield (
            "train.packing is true, and train.fused_layers, whose attention keeps packed rows apart, is false.",
            "Set train.fused_layers = true, or train.packing = false.",
        )


@_rule("error", "method.neftune_alpha", "train.objective")
def _noise_is_for_answers(config: Config, _: Facts) -> Findings:
    """method.neftune_alpha is for train.objective = sft."""
    if config.method.neftune_alpha is not None and config.train.objective != "sft":
        yield (
            f"method.neftune_alpha makes answers less certain, which train.objective = {config.train.objective} "
            "compares.",
            "Remove it.",
        )


@_rule("warning", "train.dpo_loss", "train.objective")
def _loss_of_pairs(config: Config, _: Facts) -> Findings:
    """train.dpo_loss is for train.objective = dpo."""
    train = config.train
    if train.dpo_loss != "sigmoid" and train.objective != "dpo":
        yield (
            f"train.dpo_loss is {train.dpo_loss}, and with train.objective = {train.objective} it does nothing.",
            "Remove it, or set train.objective = dpo.",
        )


@_rule("warning", "train.desirable_weight", "train.undesirable_weight", "train.objective")
def _weights_of_labels(config: Config, _: Facts) -> Findings:
    """train.desirable_weight and train.undesirable_weight are for train.objective = kto."""
    train = config.train
    if train.objective != "kto" and (train.desirable_weight, train.undesirable_weight) != (1.0, 1.0):
        yield (
            f"The weights of good and bad answers are set, and with train.objective = {train.objective} they do "
            "nothing.",
            "Remove them, or set train.objective = kto.",
        )


@_rule("warning", "train.batch_size", "train.objective")
def _divergence_needs_rows(config: Config, _: Facts) -> Findings:
    """With train.objective = kto, train.batch_size is 4 or more."""
    if config.train.objective == "kto" and config.train.batch_size < 4:
        yield (
            f"train.batch_size is {config.train.batch_size}, and kto measures on each step's rows how far the model is "
            "from its beginnings.",
            "Set it to 8 or more.",
        )


# Training for a file.


def _hinders_file(config: Config) -> Iterator[tuple[str, str]]:
    """What method.train_for does not go with, and the remedy."""
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


@_rule(
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
def _trains_for_file(config: Config, _: Facts) -> Findings:
    """method.train_for needs adapters on all-linear without method.dora, pissa and method.dropout, train.fused_layers
    without train.compile, and train.objective sft or orpo."""
    if config.method.train_for is not None:
        for sentence, hint in _hinders_file(config):
            yield f"method.train_for is {config.method.train_for}, and {sentence}.", f"{hint}, or leave it out."


@_rule("error", "train.max_hours", "train.max_energy_wh", "method.train_for")
def _limits_leave_the_file(config: Config, _: Facts) -> Findings:
    """train.max_hours and train.max_energy_wh do not go with method.train_for."""
    for name in ("max_hours", "max_energy_wh"):
        if config.method.train_for is not None and getattr(config.train, name) is not None:
            yield (
                f"train.{name} could end the run before its last third, which trains the weights of the file.",
                f"Leave train.{name} or method.train_for out.",
            )


@_rule("error", "train.on_loss_spike", "memory.optimizer_in_backward", "method.name")
def _skips_whole_updates(config: Config, _: Facts) -> Findings:
    """train.on_loss_spike = skip does not go with updates inside backward."""
    if config.train.on_loss_spike == "skip" and updates_in_backward(config):
        yield (
            "train.on_loss_spike is skip, but with updates inside backward the weights have changed when the loss is "
            "known.",
            "Set it to rollback, or memory.optimizer_in_backward = off.",
        )


@_rule("warning", "method.train_for")
def _file_gains(config: Config, _: Facts) -> Findings:
    """method.train_for = q8_0 is for the certainty that the file has the weights that were measured."""
    if config.method.train_for == "q8_0":
        yield (
            "method.train_for is q8_0, which loses almost nothing, so that training for it gained nothing measurable.",
            "Leave it out, or take q4_0 for a file of half the size.",
        )


@_rule("error", "method.train_for", "model.base")
def _file_has_whole_blocks(config: Config, facts: Facts) -> Findings:
    """method.train_for is for models whose matrices have rows of whole blocks of 32 weights, and no experts."""
    model = facts.model
    if config.method.train_for is None or model is None:
        return
    if _has_experts(model) or model.bare_experts:
        yield "method.train_for is set, and the model has experts, which have no merged layers.", "Leave it out."
    elif any(linear.inputs % 32 for layer in model.layers for linear in layer.linears) or model.hidden % 32:
        yield (
            "method.train_for is set, and the model has rows that are no whole blocks of 32 weights.",
            "Leave it out: such layers are kept in more bits.",
        )


# The model and the device.


@_rule("error", "train.max_length", "model.base")
def _length_in_table(config: Config, facts: Facts) -> Findings:
    """train.max_length is not beyond the table of positions that the model has learned."""
    model, length = facts.model, config.train.max_length
    if model is not None and model.learned_positions and model.positions is not None and length > model.positions:
        yield (
            f"train.max_length is {length}, and the model has learned {model.positions} positions and no more.",
            f"Set it to {model.positions} at most.",
        )


@_rule("warning", "train.max_length", "model.base")
def _length_in_positions(config: Config, facts: Facts) -> Findings:
    """train.max_length is not beyond the length that the model was made for."""
    model, length = facts.model, config.train.max_length
    if model is not None and not model.learned_positions and model.positions is not None and length > model.positions:
        yield (
            f"train.max_length is {length}, and the model was made for rows of {model.positions} tokens at most.",
            f"Set it to {model.positions}; what it learns of positions beyond is of little use.",
        )


@_rule("error", "train.precision", "hardware.device")
def _fp16_needs_gpu(config: Config, facts: Facts) -> Findings:
    """A CPU does not train in fp16."""
    if config.train.precision == "fp16" and _trains_on_cpu(config, facts):
        yield "train.precision is fp16, which trains badly on a CPU.", "Set it to auto, bf16 or fp32."


@_rule("error", "train.precision", "hardware.device")
def _bf16_needs_card(config: Config, facts: Facts) -> Findings:
    """bf16 needs a card that has it (NVIDIA from compute capability 8.0 on)."""
    if config.train.precision == "bf16" and facts.bf16 is False and not _trains_on_cpu(config, facts):
        yield "train.precision is bf16, which this card does not have.", "Set it to auto or fp16."


@_rule("warning", "train.optimizer", "hardware.device")
def _paging_needs_gpu(config: Config, facts: Facts) -> Findings:
    """A paged optimizer needs a GPU to move its state from."""
    if config.train.optimizer == "paged_adamw_8bit" and _trains_on_cpu(config, facts):
        yield "train.optimizer is paged_adamw_8bit, and on a CPU nothing is paged.", "Take adamw_8bit."


@_rule("warning", "memory.activation_offload", "hardware.device")
def _offload_needs_gpu(config: Config, facts: Facts) -> Findings:
    """memory.activation_offload needs a GPU to move activations from."""
    if config.memory.activation_offload == "on" and _trains_on_cpu(config, facts):
        yield (
            "memory.activation_offload is on, and on a CPU all activations are in the machine's memory.",
            "Set it to auto.",
        )


@_rule("error", "memory.activation_offload", "memory.gradient_checkpointing")
def _offload_needs_recomputing(config: Config, _: Facts) -> Findings:
    """With memory.activation_offload = on, memory.gradient_checkpointing is not off."""
    if config.memory.activation_offload == "on" and config.memory.gradient_checkpointing == "off":
        yield (
            "memory.activation_offload moves what recomputing starts from, and memory.gradient_checkpointing is off.",
            "Set memory.gradient_checkpointing = on.",
        )


@_rule("warning", "memory.offload_experts", "hardware.device")
def _experts_need_gpu(config: Config, facts: Facts) -> Findings:
    """memory.offload_experts needs a GPU to move experts from."""
    if _offloads_experts(config) and _trains_on_cpu(config, facts):
        yield (
            "memory.offload_experts is on, and on a CPU all experts are in the machine's memory.",
            "Set it to auto.",
        )


@_rule("warning", "memory.offload_experts", "model.base")
def _offload_needs_experts(config: Config, facts: Facts) -> Findings:
    """memory.offload_experts is for mixtures of experts."""
    if _offloads_experts(config) and facts.model is not None and not _has_experts(facts.model):
        yield "memory.offload_experts is on, and the model has no experts in 4 bits.", "Set it to auto."


@_rule("warning", "method.target_experts", "model.base")
def _adapted_experts_are_there(config: Config, facts: Facts) -> Findings:
    """method.target_experts = on is for mixtures of experts."""
    if config.method.name in WEIGHT_METHODS or config.method.target_experts != "on":
        return
    if facts.model is not None and not _has_experts(facts.model):
        yield "method.target_experts is on, and the model has no experts that can have adapters.", "Set it to auto."


def _has_experts(model: Architecture) -> bool:
    """Whether a model has experts that can be taken to 4 bits and get adapters."""
    return any(layer.experts is not None for layer in model.layers)


def _offloads_experts(config: Config) -> bool:
    return config.memory.offload_experts == "on" and config.method.name == "qlora"


# Several processes.


@_rule("error", "distributed.strategy", "distributed.processes", "distributed.gpus", "distributed.hosts")
def _one_process_without_strategy(config: Config, _: Facts) -> Findings:
    """distributed.strategy = none is for one process."""
    if config.distributed.strategy == "none" and wants_several(config):
        yield (
            "distributed.strategy is none, and the run is to have more than one process.",
            "Set it to auto, or leave distributed.processes, distributed.gpus and distributed.hosts out.",
        )


@_rule("error", "distributed.address", "distributed.hosts")
def _hosts_need_address(config: Config, _: Facts) -> Findings:
    """distributed.hosts needs distributed.address."""
    if config.distributed.other_hosts and config.distributed.address is None:
        yield (
            "distributed.hosts names other machines, and distributed.address does not say where they meet this one.",
            "Set it to this machine's address in the network that joins them.",
        )


@_rule("error", "distributed.processes", "distributed.gpus")
def _a_card_for_each_process(config: Config, _: Facts) -> Findings:
    """distributed.processes is not more than the cards of distributed.gpus, unless that is all."""
    named, wanted = config.distributed.named_gpus, config.distributed.processes
    if named and ALL_GPUS not in named and wanted is not None and wanted > len(named):
        yield (
            f"distributed.processes is {wanted}, and distributed.gpus names {len(named)}.",
            "Name a card for each, or leave distributed.processes out.",
        )


@_rule("error", "distributed.gpus")
def _cards_are_named_once(config: Config, _: Facts) -> Findings:
    """distributed.gpus names every card once, or is all."""
    named = config.distributed.named_gpus
    if len(set(named)) < len(named):
        yield "distributed.gpus names a card twice.", "Each process has a card of its own: name others."
    elif ALL_GPUS in named and len(named) > 1:
        yield "distributed.gpus has all and other names.", "Leave one of them out."


@_rule("error", "distributed.gpus", "hardware.gpu")
def _one_way_to_name_cards(config: Config, _: Facts) -> Findings:
    """Only one of hardware.gpu and distributed.gpus names cards, and with hardware.gpu there is one process."""
    several = (config.distributed.processes or 1) > 1
    if config.hardware.gpu is not None and (config.distributed.named_gpus or several):
        what = "distributed.gpus names others" if config.distributed.named_gpus else "distributed.processes wants more"
        yield f"hardware.gpu names one card, and {what}.", "Remove hardware.gpu, and name them in distributed.gpus."


@_rule("error", "memory.optimizer_in_backward", "distributed.processes", "distributed.gpus", "distributed.hosts")
def _no_sum_in_backward(config: Config, _: Facts) -> Findings:
    """With more than one process, memory.optimizer_in_backward is not on."""
    wanted, method = config.memory.optimizer_in_backward, config.method.name
    if wanted == "on" and method in WEIGHT_METHODS and wants_several(config):
        yield (
            "memory.optimizer_in_backward is on, and the gradients of several processes are added up after backward.",
            "Set it to auto.",
        )


@_rule("warning", "train.batch_size", "distributed.processes")
def _rows_for_each_process(config: Config, _: Facts) -> Findings:
    """train.batch_size has a row for each process at least."""
    processes = config.distributed.processes or len(config.distributed.named_gpus) or 1
    processes *= 1 + len(config.distributed.other_hosts)
    if config.train.batch_size < processes:
        yield (
            f"train.batch_size is {config.train.batch_size}, and {processes} processes share the rows of a step.",
            f"Set it to {processes} or more: some have nothing to do otherwise.",
        )


@_rule("warning", "distributed.zero_stage", "distributed.strategy")
def _stage_of_deepspeed(config: Config, _: Facts) -> Findings:
    """distributed.zero_stage is for distributed.strategy = deepspeed."""
    distributed = config.distributed
    if distributed.zero_stage != 2 and distributed.strategy != "deepspeed":
        yield (
            f"distributed.zero_stage is {distributed.zero_stage}, and with distributed.strategy = "
            f"{distributed.strategy} it does nothing.",
            "Set distributed.strategy = deepspeed, or remove it.",
        )


@_rule("warning", "distributed.offload", "distributed.strategy")
def _offload_of_shares(config: Config, _: Facts) -> Findings:
    """distributed.offload is for distributed.strategy = fsdp2 or deepspeed, or auto where that takes fsdp2."""
    if config.distributed.offload != "none" and config.distributed.strategy in ("none", "replicate"):
        yield (
            f"distributed.offload is {config.distributed.offload}, and with distributed.strategy = "
            f"{config.distributed.strategy} nothing is shared out that could be moved.",
            "Set distributed.strategy = fsdp2, or remove it.",
        )


@_rule("error", "distributed.strategy", "train.objective", "train.optimizer", "method.train_for", "method.name")
def _shares_are_no_whole_weights(config: Config, _: Facts) -> Findings:
    """distributed.strategy = fsdp2 is not for what needs whole weights in each process: dpo and kto with adapters,
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


@_rule("error", "distributed.strategy", "train.optimizer", "train.precision", "method.train_for")
def _what_deepspeed_trains(config: Config, _: Facts) -> Findings:
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


@_rule(
    "error",
    "distributed.zero_stage",
    "distributed.strategy",
    "train.objective",
    "method.dora",
    "method.init",
    "method.name",
)
def _what_the_third_stage_trains(config: Config, _: Facts) -> Findings:
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


@_rule("error", "distributed.strategy", "distributed.processes", "distributed.gpus", "distributed.hosts")
def _deepspeed_is_installed(config: Config, facts: Facts) -> Findings:
    """DeepSpeed is installed where more than one process has distributed.strategy = deepspeed."""
    wanted = config.distributed.strategy == "deepspeed" and wants_several(config)
    if wanted and facts.has_deepspeed is False:
        yield deepspeed.MISSING


# Training of the weights themselves.


@_rule("error", "train.precision", "method.name")
def _weights_not_in_fp16(config: Config, _: Facts) -> Findings:
    """Weights that are trained themselves are not fp16."""
    if config.method.name in WEIGHT_METHODS and config.train.precision == "fp16":
        yield (
            f"method.name is {config.method.name}, and weights that are trained cannot be fp16.",
            "Set train.precision = auto.",
        )


@_rule("error", "train.micro_batch_size", "memory.optimizer_in_backward", "train.batch_size")
def _no_accumulation_in_backward(config: Config, _: Facts) -> Findings:
    """With updates inside backward a step is one pass, so train.micro_batch_size is not below train.batch_size."""
    micro, batch = config.train.micro_batch_size, config.train.batch_size
    if updates_in_backward(config) and micro is not None and micro < batch:
        yield (
            f"train.micro_batch_size is {micro} and train.batch_size {batch}, but with updates inside backward weights "
            "change in the first pass, so gradients cannot be added up over several.",
            f"Set train.batch_size = {micro}, or memory.optimizer_in_backward = off.",
        )


@_rule("warning", "memory.optimizer_in_backward", "method.name")
def _backward_updates_weights(config: Config, _: Facts) -> Findings:
    """memory.optimizer_in_backward is for method.name full or freeze."""
    if config.memory.optimizer_in_backward == "on" and config.method.name not in WEIGHT_METHODS:
        yield (
            f"memory.optimizer_in_backward is on, but with method.name = {config.method.name} it does nothing: the "
            "gradients of adapters are small.",
            "Set it to auto.",
        )


@_rule("warning", "train.max_grad_norm", "memory.optimizer_in_backward")
def _no_norm_in_backward(config: Config, _: Facts) -> Findings:
    """train.max_grad_norm is not set with updates inside backward."""
    if updates_in_backward(config) and config.train.max_grad_norm and "max_grad_norm" in config.train.model_fields_set:
        yield (
            "train.max_grad_norm cannot be kept with updates inside backward: the norm is known when all is done.",
            "Set it to 0, or memory.optimizer_in_backward = off.",
        )


# The adapters.


@_rule("warning", "method.alpha", "method.rank")
def _alpha_fits_rank(config: Config, _: Facts) -> Findings:
    """method.alpha is from half of method.rank to four times as much, unless method.rslora is on."""
    method = config.method
    scale = method.alpha / method.rank
    if not method.rslora and not 0.5 <= scale <= 4:
        effect = "little is learned" if scale < 0.5 else "training becomes unsteady"
        yield (
            f"method.alpha is {method.alpha:g} at rank {method.rank}: a scale of {scale:.3g}, with which {effect}.",
            f"Twice the rank is usual: method.alpha = {2 * method.rank}.",
        )


@_rule("warning", "method.alpha", "method.rslora", "method.rank")
def _alpha_fits_rslora(config: Config, _: Facts) -> Findings:
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


@_rule("warning", "method.dora", "method.name")
def _dora_on_4_bits(config: Config, _: Facts) -> Findings:
    """method.dora is slow on a 4-bit base."""
    if config.method.dora and config.method.name == "qlora":
        yield (
            "method.dora on a 4-bit base is slow: every weight is unpacked once more in every pass.",
            "Take method.name = lora if the model fits in 16 bits, or a higher rank without dora.",
        )


@_rule("warning", "method.dropout", "method.dora")
def _dora_with_dropout(config: Config, _: Facts) -> Findings:
    """method.dropout with method.dora computes every layer twice."""
    if config.method.dora and config.method.dropout > 0:
        yield "method.dropout with method.dora computes every adapted layer twice.", "Set method.dropout = 0."


@_rule("warning", "method.dropout")
def _dropout_is_small(config: Config, _: Facts) -> Findings:
    """method.dropout is at most 0.3."""
    if config.method.dropout > 0.3:
        yield f"method.dropout is {config.method.dropout:g}, with which little is learned.", "0 to 0.1 is usual."


@_rule("error", "method.target_modules", "model.keep_16bit")
def _patterns_can_be_read(config: Config, _: Facts) -> Findings:
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


@_rule("warning", "model.keep_16bit", "method.name")
def _only_4_bits_leave_layers_out(config: Config, _: Facts) -> Findings:
    """model.keep_16bit is for method.name = qlora."""
    if config.model.keep_16bit is not None and config.method.name != "qlora":
        yield (
            f"model.keep_16bit is set, and with method.name = {config.method.name} all layers are in 16 bit.",
            "Remove it, or set method.name = qlora.",
        )


@_rule("warning", "model.keep_16bit", "model.base")
def _kept_layers_are_there(config: Config, facts: Facts) -> Findings:
    """Every entry of model.keep_16bit is the name of a layer of the model."""
    model, entries = facts.model, kept_patterns(config.model.keep_16bit)
    if model is None or not entries or config.method.name != "qlora":
        return
    names = [linear.name for linear in model.linears]
    layers = (layer for layer in model.layers for _ in range(layer.count))
    names += [f"{model.prefix}.{number}.{one.name}" for number, layer in enumerate(layers) for one in layer.linears]
    for entry in entries:
        # Experts have other names in each family.
        if "expert" in entry and _has_experts(model):
            continue
        if expression_problem(entry) is None and not any(is_target(name, entry) for name in names):
            yield (
                f"model.keep_16bit has {one_line(entry, 60)}, and no layer of the model has that name.",
                'Take a name like "layers.0.*" or "down_proj"; \'localtune-tui bits\' finds out which are worth it.',
            )


@_rule("error", "method.init", "method.name")
def _loftq_needs_4_bits(config: Config, _: Facts) -> Findings:
    """method.init = loftq needs method.name = qlora."""
    if config.method.init == "loftq" and config.method.name != "qlora":
        yield (
            "method.init is loftq, which makes up for the rounding to 4 bits, and method.name = "
            f"{config.method.name} rounds nothing.",
            "Take method.name = qlora, or method.init = pissa.",
        )


@_rule("error", "method.init", "method.dora")
def _dora_begins_plainly(config: Config, _: Facts) -> Findings:
    """method.dora begins from the weights as they are, which no method.init but default leaves."""
    if config.method.dora and config.method.init != "default":
        yield (
            f"method.init is {config.method.init}, and method.dora measures its magnitudes on weights that adapters "
            "have not changed yet.",
            "Set method.init = default, or turn method.dora off.",
        )


@_rule("error", "method.target_experts", "method.dora", "method.init", "method.name")
def _experts_begin_plainly(config: Config, _: Facts) -> Findings:
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


@_rule("warning", "method.dropout", "method.init")
def _dropout_from_the_beginning(config: Config, _: Facts) -> Findings:
    """With method.init = pissa, method.dropout is 0."""
    if config.method.init == "pissa" and config.method.dropout > 0:
        yield (
            "method.dropout drops from the main directions of the weights, with which method.init = pissa begins.",
            "Set method.dropout = 0.",
        )


@_rule("warning", "method.loraplus_ratio", "train.learning_rate")
def _ratio_suits_rate(config: Config, _: Facts) -> Findings:
    """train.learning_rate times method.loraplus_ratio is below 1e-2."""
    ratio, rate = config.method.loraplus_ratio, config.train.learning_rate
    if ratio is not None and rate < 1e-2 <= rate * ratio:
        yield (
            f"method.loraplus_ratio is {ratio:g}: the adapters' second matrices learn at {rate * ratio:.3g}, "
            "with which they diverge.",
            f"Lower train.learning_rate to {4e-3 / ratio:.1g} or less.",
        )


# The optimization.


@_rule("warning", "train.learning_rate", "method.name")
def _learning_rate_suits(config: Config, _: Facts) -> Findings:
    """train.learning_rate is between 1e-5 and 1e-2 for adapters, and below 1e-4 for weights."""
    rate = config.train.learning_rate
    if config.method.name in WEIGHT_METHODS:
        if rate >= 1e-4:
            yield (
                f"train.learning_rate is {rate:g}, which suits adapters; weights that are trained themselves diverge.",
                "5e-6 to 2e-5 is usual.",
            )
        return
    if config.train.optimizer == "lion_8bit":
        return
    if rate <= 1e-5 and config.train.objective == "sft":
        yield (
            f"train.learning_rate is {rate:g}, which suits full fine-tuning and is too low for adapters.",
            "1e-4 to 3e-4 is usual.",
        )
    elif rate >= 1e-2:
        yield f"train.learning_rate is {rate:g}, with which adapters diverge.", "1e-4 to 3e-4 is usual."


@_rule("warning", "train.learning_rate", "train.optimizer")
def _lion_is_slower(config: Config, _: Facts) -> Findings:
    """With train.optimizer = lion_8bit, train.learning_rate is between 1e-6 and 1e-4."""
    rate = config.train.learning_rate
    if config.train.optimizer == "lion_8bit" and not 1e-6 <= rate <= 1e-4:
        much = "much" if rate > 1e-4 else "little"
        yield (
            f"train.learning_rate is {rate:g}, which is {much} for lion_8bit: by that it moves every weight in a step.",
            "2e-5 to 6e-5 is usual, a third to a tenth of what suits adamw.",
        )


@_rule("warning", "train.epochs", "train.max_steps")
def _epochs_or_steps(config: Config, _: Facts) -> Findings:
    """Only one of train.epochs and train.max_steps is set."""
    if config.train.max_steps is not None and "epochs" in config.train.model_fields_set:
        yield (
            f"train.epochs is ignored, as train.max_steps = {config.train.max_steps} decides alone.",
            "Remove one of the two.",
        )


@_rule("warning", "train.warmup", "train.max_steps")
def _warmup_is_short(config: Config, facts: Facts) -> Findings:
    """train.warmup ends well before the run does."""
    warmup, steps = config.train.warmup, step_count(config, facts.rows)
    if 0.5 < warmup < 1:
        yield f"train.warmup is {warmup:.0%} of the run.", "0.03 to 0.1 is usual."
    elif warmup >= 1 and steps is not None and int(warmup) >= steps:
        yield (
            f"train.warmup is {int(warmup)} steps, and the run has {steps}: the learning rate never gets to its peak.",
            "Set a share instead: train.warmup = 0.1.",
        )


@_rule("warning", "train.micro_batch_size", "train.batch_size")
def _micro_batch_in_batch(config: Config, _: Facts) -> Findings:
    """train.micro_batch_size is not above train.batch_size."""
    micro, batch = config.train.micro_batch_size, config.train.batch_size
    if micro is not None and micro > batch:
        yield (
            f"train.micro_batch_size is {micro}, and a step has {batch} rows: more are never at hand.",
            "Leave it out, or raise train.batch_size.",
        )


@_rule("warning", "train.batch_size", "data.train")
def _batch_in_rows(config: Config, facts: Facts) -> Findings:
    """train.batch_size is not above the number of rows."""
    if facts.rows is not None and config.train.batch_size > facts.rows:
        yield (
            f"train.batch_size is {config.train.batch_size}, and there are {facts.rows} rows: an epoch is one step.",
            "Lower it, so that there are some steps.",
        )


@_rule("warning", "eval.every_steps", "train.max_steps")
def _eval_in_run(config: Config, facts: Facts) -> Findings:
    """eval.every_steps is below the number of steps."""
    every, steps = config.eval.every_steps, step_count(config, facts.rows)
    if every is not None and steps is not None and every >= steps and _has_eval(config):
        yield f"eval.every_steps is {every}, and the run has {steps}: it is measured at the end only.", "Lower it."


# Checkpoints.


@_rule("warning", "checkpoint.every_steps", "train.max_steps")
def _checkpoint_in_run(config: Config, facts: Facts) -> Findings:
    """checkpoint.every_steps is below the number of steps."""
    every, steps = config.checkpoint.every_steps, step_count(config, facts.rows)
    if every is not None and steps is not None and every > steps:
        yield (
            f"checkpoint.every_steps is {every}, and the run has {steps}: a run that is cut off begins anew.",
            "Lower it, or leave it out: ten are written then.",
        )


@_rule("error", "checkpoint.keep", "method.rank")
def _room_for_one(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for a checkpoint and the adapter."""
    need, free = facts.disk_need(config), facts.free_bytes
    if need is not None and free is not None and need.checkpoint > free:
        size = format_bytes(need.checkpoint)
        yield (
            f"A checkpoint takes about {size}, and the disk of the runs has {format_bytes(free)} free.",
            "Make room, set LOCALTUNE_HOME to a larger disk, or lower method.rank.",
        )


@_rule("warning", "checkpoint.keep", "method.rank")
def _room_for_all(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for as many checkpoints as are kept, and one more."""
    need, free, keep = facts.disk_need(config), facts.free_bytes, config.checkpoint.keep
    if need is not None and free is not None and need.checkpoint <= free < need.run:
        fewer = keep - math.ceil((need.run - free) / need.checkpoint)
        lower = f"Lower checkpoint.keep to {fewer}, or make" if fewer >= 1 else "Make"
        yield (
            f"{_checkpoints(keep)}, the one being written and the adapter take about {format_bytes(need.run)}, "
            f"and on the disk of the runs {format_bytes(free)} are free.",
            f"{lower} room.",
        )


def _checkpoints(count: int) -> str:
    return f"{count} checkpoint{'' if count == 1 else 's'}"


# The night.


def _unread(name: str, texts: Iterable[str], read: Callable[[str], object]) -> Findings:
    """Times of day that are none."""
    for text in texts:
        try:
            read(text)
        except UserError as error:
            yield f"{name}: {error.message}", error.hint


@_rule("error", "night.deadline")
def _deadline_is_read(config: Config, _: Facts) -> Findings:
    """night.deadline is a time of day, as "07:00"."""
    yield from _unread("night.deadline", filter(None, [config.night.deadline]), parse_time)


@_rule("error", "night.quiet_hours")
def _quiet_hours_are_read(config: Config, _: Facts) -> Findings:
    """night.quiet_hours is a span of the day, as "23:00-07:00"."""
    yield from _unread("night.quiet_hours", filter(None, [config.night.quiet_hours]), parse_span)


@_rule("error", "parking.hours")
def _parking_hours_are_read(config: Config, _: Facts) -> Findings:
    """parking.hours are spans of the day, as "18:00-23:00"."""
    yield from _unread("parking.hours", config.parking.spans, parse_span)


@_rule("error", "night.quiet_power_w", "night.quiet_hours")
def _quiet_power_needs_hours(config: Config, _: Facts) -> Findings:
    """night.quiet_power_w needs night.quiet_hours."""
    if config.night.quiet_power_w is not None and config.night.quiet_hours is None:
        yield "night.quiet_power_w is set, but there are no quiet hours.", 'Set night.quiet_hours = "23:00-07:00".'


# Trackers.


@_rule("error", "tracking.project")
def _project_is_a_name(config: Config, _: Facts) -> Findings:
    """tracking.project is a name that the trackers take: without / \\ # ? % : and at most 128 characters."""
    project = config.tracking.project
    if set(project) & set("/\\#?%:") or len(project) > 128:
        yield (
            f"tracking.project is {one_line(project, 60)}, and the trackers do not take it as a name.",
            "Leave out / \\ # ? % : and keep it below 128 characters.",
        )


@_rule("warning", "tracking.wandb_mode", "tracking.tools")
def _online_is_tracked(config: Config, _: Facts) -> Findings:
    """tracking.wandb_mode = online goes with wandb among tracking.tools."""
    if config.tracking.wandb_mode == "online" and "wandb" not in config.tracking.asked:
        yield "tracking.wandb_mode is online, and wandb is not among tracking.tools: nothing is sent.", "Add it."


@_rule("warning", "tracking.tools")
def _trackers_are_installed(config: Config, facts: Facts) -> Findings:
    """The trackers of tracking.tools are installed."""
    for tool in sorted(config.tracking.asked & (facts.missing_trackers or frozenset())):
        yield (
            f"tracking.tools names {tool}, which is not installed: the run goes on without it.",
            f"pip install 'localtune-tui[{tool}]', now or later: 'localtune-tui track RUN' sends what was missed.",
        )
