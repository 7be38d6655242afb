"""Rules of ``train`` and ``checkpoint``: learning rate, length of the run, batches, intervals, and room on the disk."""

from __future__ import annotations

import math

from core.config.derived import holds_out, step_count
from core.config.facts import Facts
from core.config.rules import Findings, rule
from core.config.schema import WEIGHT_METHODS, Config
from core.units import counted, format_bytes


@rule("warning", "train.learning_rate", "method.name")
def learning_rate_suits(config: Config, _: Facts) -> Findings:
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


@rule("warning", "train.learning_rate", "train.optimizer")
def lion_is_slower(config: Config, _: Facts) -> Findings:
    """With train.optimizer = lion_8bit, train.learning_rate is between 1e-6 and 1e-4."""
    rate = config.train.learning_rate
    if config.train.optimizer == "lion_8bit" and not 1e-6 <= rate <= 1e-4:
        much = "much" if rate > 1e-4 else "little"
        yield (
            f"train.learning_rate is {rate:g}, which is {much} for lion_8bit: by that it moves every weight in a step.",
            "2e-5 to 6e-5 is usual, a third to a tenth of what suits adamw.",
        )


@rule("warning", "train.epochs", "train.max_steps")
def epochs_or_steps(config: Config, _: Facts) -> Findings:
    """train.epochs and train.max_steps are not both set."""
    if config.train.max_steps is not None and "epochs" in config.train.model_fields_set:
        yield (
            f"train.epochs is ignored, as train.max_steps = {config.train.max_steps} decides alone.",
            "Remove one of the two.",
        )


@rule("warning", "train.warmup", "train.max_steps")
def warmup_is_short(config: Config, facts: Facts) -> Findings:
    """train.warmup ends well before the run does."""
    warmup, steps = config.train.warmup, step_count(config, facts.rows)
    if 0.5 < warmup < 1:
        yield f"train.warmup is {warmup:.0%} of the run.", "0.03 to 0.1 is usual."
    elif warmup >= 1 and steps is not None and int(warmup) >= steps:
        yield (
            f"train.warmup is {int(warmup)} steps, and the run has {steps}: the learning rate never gets to its peak.",
            "Set a share instead: train.warmup = 0.1.",
        )


@rule("warning", "train.micro_batch_size", "train.batch_size")
def micro_batch_in_batch(config: Config, _: Facts) -> Findings:
    """train.micro_batch_size is not above train.batch_size."""
    micro, batch = config.train.micro_batch_size, config.train.batch_size
    if micro is not None and micro > batch:
        yield (
            f"train.micro_batch_size is {micro}, and a step has {batch} rows: more are never at hand.",
            "Leave it out, or raise train.batch_size.",
        )


@rule("warning", "train.batch_size", "data.train")
def batch_in_rows(config: Config, facts: Facts) -> Findings:
    """train.batch_size is not above the number of rows."""
    if facts.rows is not None and config.train.batch_size > facts.rows:
        rows = "there is one row" if facts.rows == 1 else f"there are {facts.rows} rows"
        yield (
            f"train.batch_size is {config.train.batch_size}, and {rows}: an epoch is one step.",
            "Lower it, so that there are some steps.",
        )


@rule("warning", "eval.every_steps", "train.max_steps")
def eval_in_run(config: Config, facts: Facts) -> Findings:
    """eval.every_steps is below the number of steps."""
    every, steps = config.eval.every_steps, step_count(config, facts.rows)
    if every is not None and steps is not None and every >= steps and holds_out(config):
        yield f"eval.every_steps is {every}, and the run has {steps}: it is measured at the end only.", "Lower it."


@rule("warning", "checkpoint.every_steps", "train.max_steps")
def checkpoint_in_run(config: Config, facts: Facts) -> Findings:
    """checkpoint.every_steps is below the number of steps."""
    every, steps = config.checkpoint.every_steps, step_count(config, facts.rows)
    if every is not None and steps is not None and every > steps:
        yield (
            f"checkpoint.every_steps is {every}, and the run has {steps}: a run that is cut off begins anew.",
            "Lower it, or leave it out: ten are written then.",
        )


@rule("error", "checkpoint.keep", "method.rank")
def room_for_one(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for a checkpoint and the adapter."""
    need, free = facts.disk_need(config), facts.free_bytes
    if need is not None and free is not None and need.checkpoint > free:
        size = format_bytes(need.checkpoint)
        yield (
            f"A checkpoint takes about {size}, and the disk of the runs has {format_bytes(free)} free.",
            "Make room, set LOCALTUNE_HOME to a larger disk, or lower method.rank.",
        )


@rule("warning", "checkpoint.keep", "method.rank")
def room_for_all(config: Config, facts: Facts) -> Findings:
    """There is room on the disk for as many checkpoints as are kept, and one more."""
    need, free, keep = facts.disk_need(config), facts.free_bytes, config.checkpoint.keep
    if need is not None and free is not None and need.checkpoint <= free < need.run:
        fewer = keep - math.ceil((need.run - free) / need.checkpoint)
        lower = f"Lower checkpoint.keep to {fewer}, or make" if fewer >= 1 else "Make"
        yield (
            f"{counted(keep, 'checkpoint')}, the one being written and the adapter take about "
            f"{format_bytes(need.run)}, and on the disk of the runs {format_bytes(free)} are free.",
            f"{lower} room.",
        )
