"""Conversions shared by several tools, mostly for keys of the transformers trainer, on which they all build."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from urllib.parse import quote

from core.config.choices import Objective, Tracker
from core.config.schema import WEIGHT_METHODS, ModelSection, TrainSection
from core.config.targets import EXPRESSION, expression_problem
from core.hub_uri import DEFAULT_REVISION, is_hub_id
from core.importers.data_files import INSTEAD, count_entries, per_epoch
from core.importers.tool import REASONS, SHARED
from core.importers.translation import OFF, SAME, Translation, is_one_of
from core.models.find import close_name, find_model
from core.text import one_line

#: Reason for evaluation keys without evaluation rows.
NOTHING_HELD_OUT = "Nothing is held out, so there is nothing to evaluate."
#: Reason for keys of adapters where all weights, or whole layers, are trained.
ADAPTERS_ONLY = "It counts only for adapters."
#: Remark on the batch size of a file with packed rows.
PACKED_ROWS = " Packed rows held several each: raise it for as many in a step."
_PATTERN = re.compile(r"[\\*+?()\[\]{}|^$]")


# Model, adapters and precision.


def model_base(work: Translation, key: str, *revisions: str) -> None:
    """Convert the base model: a resolved path, or a Hub name with the command that downloads it.

    Args:
        work: The translation.
        key: Key of the model.
        revisions: Keys of its revision on the Hub.
    """
    name = work.text(key)
    given = [revision for revision in revisions if work.has(revision)]
    if name is None:
        work.change(key, "model.base", ModelSection().base, "The file names no model: the starter model.")
    elif work.places.exists(name):
        path = work.places.locate(name)
        differs = "" if str(path) == name else f"Paths are relative to {work.places.base}."
        work.take(key, "model.base", work.places.write(path) if differs else name, differs)
    elif is_hub_id(name) and find_model(name) is None:
        wanted = work.text(given[0]) if given else None
        version = f"@{quote(wanted, safe='')}" if wanted and wanted != DEFAULT_REVISION else ""
        near = close_name(name)
        guess = f"Did you mean {one_line(near, 100)}? " if near is not None else ""
        work.change(key, "model.base", name, f"{guess}'localtune-tui fetch hf://{name}{version}' downloads it.")
        if version and work.settings["model.base"].comment:
            work.note_change(given[0], "model.base", "The command that downloads the model names it.")
    else:
        work.carry(key, "model.base", name)
    for revision in given:
        if work.text(revision) == DEFAULT_REVISION:
            work.keep(revision)
        else:
            work.drop(revision, "The model is used as it is in its directory or in the hub's cache.")


def target_modules(work: Translation, key: str, names: list[str], *, is_text: bool = False) -> None:
    """Convert target modules: names, a pattern, or all linear layers.

    Args:
        work: The translation.
        key: Key of the target modules.
        names: Its value.
        is_text: True if the value is a single string, a regular expression for PEFT; PEFT's lists hold names only.
    """
    option = "method.target_modules"
    if any(name.lower() in ("all", "all-linear", "all_linear") for name in names):
        work.carry(key, option, "all-linear")
    elif not any(_PATTERN.search(name) for name in names):
        work.carry(key, option, names)
    elif is_text and expression_problem(expression := EXPRESSION + names[0]) is None:
        work.carry(key, option, [expression], "A regular expression that must match the whole name of a layer.")
    else:
        work.drop(key, "This pattern cannot be used: all linear layers get adapters.", option, "all-linear")


def train_weights(work: Translation) -> None:
    """Turn off the optimizer in the backward pass: other tools accumulate and clip gradients."""
    reason = "Gradients are accumulated and clipped; auto updates during the backward pass and needs far less memory."
    work.put("memory.optimizer_in_backward", "off", reason)


def precision(work: Translation, key: str, value: str, differs: str = "") -> None:
    """Convert a key that asks for a precision, unless another precision is set."""
    if work.value("train.precision") not in (None, "auto", value):
        work.drop(key, "Another precision is given too.")
    elif value == "fp16" and work.value("method.name") in WEIGHT_METHODS:
        work.drop(key, "Weights that are trained are never fp16: the device decides between bf16 and fp32.")
    else:
        work.take(key, "train.precision", value, differs)


def offload_activations(work: Translation, key: str, differs: str = "") -> None:
    """Convert a key that asks for gradient checkpointing with inputs in host memory."""
    work.put("memory.gradient_checkpointing", "on")
    work.take(key, "memory.activation_offload", "on", differs)


def compile_layers(work: Translation, by: str) -> None:
    """Convert the keys of ``torch.compile``.

    Args:
        work: The translation.
        by: Key that turns it on; empty without one.
    """
    layers = "The layers are compiled, in one program for all, not the model as a whole."
    if by:
        work.put("train.compile", True, layers)
    for key in (
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("torch_compile_options", "torchdynamo"),
    ):
        if not by or work.is_(key, *OFF, "false"):
            work.keep(key)
        elif not work.is_(key, "inductor", "default", True, "true", "auto"):
            work.drop(key, REASONS["kernels"], "train.compile" if key == by else None, True)
        elif key == by:
            work.change(key, "train.compile", True, layers)
        else:
            work.keep(key)


# Batches, length and schedule.


def joined_batch(work: Translation, micro: str, accumulate: str, defaults: tuple[int, int], remark: str = "") -> None:
    """Convert the batch size: rows of an optimizer step, micro-batch size times gradient accumulation steps.

    Args:
        work: The translation.
        micro: Key of the micro-batch size.
        accumulate: Key of the gradient accumulation steps.
        defaults: Defaults of the tool for both.
        remark: Further sentences for the comment, each after a space.
    """
    at_once, times = work.integer(micro), work.integer(accumulate)
    for key, number in ((micro, at_once), (accumulate, times)):
        if number is not None and number < 1:
            work.refuse(key, "must be 1 or more")
    rows = (at_once or defaults[0]) * (times or defaults[1])
    sentence = f"{at_once or defaults[0]} at once x {times or defaults[1]} accumulated, on one device.{remark}"
    if problem := work.put("train.batch_size", rows, sentence):
        work.drop(micro, problem)
        work.drop(accumulate, problem)
    else:
        work.carry(micro, "train.micro_batch_size", at_once)
        work.change(accumulate, "train.batch_size", rows, sentence)


def cut_length(work: Translation, key: str, default: int) -> None:
    """Convert the maximum length of tools that truncate longer rows; our default drops them."""
    cut = f"{work.title} truncates longer rows; here at their end, so that an answer may lose its end."
    length = work.integer(key)
    comment = "" if length else f"{work.title}'s default."
    problem = work.put("train.max_length", default if length is None else length, comment)
    work.put("data.overlong", "truncate", cut)
    if problem:
        work.drop(key, problem)
    else:
        work.note_change(key, "train.max_length, data.overlong", cut)


def special_tokens_act(work: Translation) -> None:
    """Let special tokens in the text of a row act as tokens, as in all three tools; our default drops such rows."""
    work.put("data.special_tokens", "keep", f"In {work.title}, special tokens in the text of a row act as such.")


def pack(work: Translation, key: str, differs: str = "") -> None:
    """Convert a key that asks for packing, unless another option excludes it.

    Args:
        work: The translation.
        key: Key that asks for it.
        differs: Difference from the other tool; empty without one.
    """
    noise = [work.values.get(name) for name in ("neftune_noise_alpha", "noisy_embedding_alpha")]
    if any(not is_one_of(value, (None, 0, False, "")) for value in noise):
        work.drop(key, "method.neftune_alpha needs padded batches: rows are not packed.")
    else:
        work.take(key, "train.packing", True, differs)


#: Difference of packing in the tools that fill each row of a batch.
FILLED = (
    "The rows of a micro-batch lie end to end and never attend to each other; there, each row of a batch is filled."
)


def epochs(work: Translation, key: str, steps: str, default: float) -> None:
    """Convert the length of the run; a number of steps overrides the epochs.

    Args:
        work: The translation.
        key: Key of the epochs.
        steps: Key of the steps.
        default: Default number of epochs of the tool.
    """
    most, number = work.integer(steps), work.number(key)
    if most is not None and most > 0:
        work.carry(steps, "train.max_steps", most)
    work.keep(steps)
    if "train.max_steps" in work.settings:
        work.keep(key)
    elif number:
        work.carry(key, "train.epochs", number)
    elif default != TrainSection().epochs or number is not None:
        work.change(key, "train.epochs", default, f"No number of epochs: {work.title}'s default is {default:g}.")


def schedule(work: Translation, name: str, ratio: str, steps: str, default: str | None, warmup: float) -> None:
    """Convert learning rate schedule and warmup; ``constant`` has no warmup in the other tool, but here.

    Args:
        work: The translation.
        name: Key of the schedule.
        ratio: Key of the warmup as a share.
        steps: Key of the warmup in steps.
        default: Default schedule of the tool, if it differs from ours.
        warmup: Default warmup of the tool.
    """
    dataclasses.replace(SHARED["schedule"], absent=default).apply(work, name)
    if work.is_(name, "constant"):
        reason = f"{name}: constant has no warmup; constant_with_warmup has."
        work.change(ratio if work.has(ratio) and not work.has(steps) else steps, "train.warmup", 0.0, reason)
        work.drop(ratio, reason)
        return
    given, share = work.number(steps), work.number(ratio)
    if given is not None and (given > 0 or share is None):
        work.drop(ratio, f"{steps} is given too, and counts.")
        is_share = 0 < given < 1
        differs = "Below 1 it is a share of all steps, as in newer trainers." if is_share else ""
        work.take(steps, "train.warmup", given if is_share else float(int(given)), differs)
    elif share is None:
        reason = f"Not given: {work.title}'s default is {f'{warmup:.0%}' if 0 < warmup < 1 else f'{warmup:g} steps'}."
        work.change(steps, "train.warmup", warmup, reason)
    else:
        work.keep(steps)
        if share >= 1:
            work.drop(ratio, "The whole run would be warmup; the default holds.")
        else:
            work.carry(ratio, "train.warmup", share)


# Evaluation, checkpoints and early stopping.


def is_measured(work: Translation) -> bool:
    """True if there are rows for evaluation."""
    return bool({"data.eval", "data.eval_share"} & work.settings.keys())


def held_out(work: Translation, key: str, *, has_rows: bool) -> None:
    """Convert the share or number of held-out rows.

    Args:
        work: The translation.
        key: Key of the share.
        has_rows: True if other rows for evaluation are given.
    """
    option, most = "data.eval_share", "At most half of the rows can be held out."
    share = work.number(key)
    if share is None or share == 0:
        work.keep(key)
    elif share < 0:
        work.refuse(key, "must not be below 0")
    elif has_rows:
        work.drop(key, "Rows for evaluation are given, and only one of the two is possible.")
    elif share <= 0.5:
        work.carry(key, option, share, "train.seed decides which rows; eval.max_rows of them are evaluated.")
    elif share < 1:
        work.change(key, option, 0.5, most)
    elif (counts := count_entries(work)) is None:
        reason = f"The share of {int(share)} rows is unknown before the data is here: nothing is held out."
        work.drop(key, f"{reason} Set data.eval_share.")
    else:
        wanted, total = int(share), sum(counts)
        # Enough digits for exactly that number of rows.
        exact = 0.5 if 2 * wanted > total else round(wanted / total, len(str(total)) + 1)
        work.change(key, option, exact, f"{wanted} of {total} rows. {most}")


def save_strategy(work: Translation) -> None:
    """Convert the save strategy; call it before ``save_steps``, which applies only with ``steps``."""
    key, option = "save_strategy", "checkpoint.every_steps"
    if work.is_(key, "steps", "best"):
        work.keep(key)
    elif work.is_(key, "no", False):
        work.drop(key, "A run always saves checkpoints: ten, or as save_steps says.")
    elif not work.is_(key, "epoch"):
        work.drop(key, f"It may be no, steps or epoch: {INSTEAD[option]}")
    elif option in work.settings:
        work.drop(key, "Steps are given too, and count.")
    else:
        per_epoch(work, key, option, 1)
        work.drop("save_steps", "It counts only with save_strategy: steps.")


_BY_LOSS = "The best step is that of the lowest held-out loss."
#: Keys of the best checkpoint in the transformers trainer.
BEST_KEYS = "load_best_model_at_end metric_for_best_model greater_is_better"


def early_stopping(work: Translation, key: str) -> bool:
    """Convert the patience: evaluations without a new best, in the trainer as here.

    Returns:
        True if it was set.
    """
    patience = work.integer(key)
    if patience is None:
        return False
    if is_measured(work):
        work.take(key, "eval.patience", patience, "" if _is_loss(work) else _BY_LOSS)
    else:
        work.drop(key, NOTHING_HELD_OUT)
    return "eval.patience" in work.settings


def best_checkpoint(work: Translation, *, stops_early: bool) -> None:
    """Convert the keys of the best checkpoint.

    Args:
        work: The translation.
        stops_early: True if the metric counts for early stopping too.
    """
    best, metric, greater = BEST_KEYS.split()
    wanted, is_greater, is_loss = work.boolean(best), bool(work.boolean(greater)), _is_loss(work)
    if wanted and not is_measured(work):
        work.drop(best, NOTHING_HELD_OUT)
    elif wanted and is_loss and is_greater:
        work.drop(best, _BY_LOSS)
    elif wanted:
        work.take(best, "checkpoint.final", "best", "" if is_loss else _BY_LOSS)
    work.keep(best)
    for key, is_same in ((metric, is_loss), (greater, not is_greater)):
        if is_same or not (stops_early or wanted):
            work.keep(key)
        else:
            work.drop(key, _BY_LOSS)


def _is_loss(work: Translation) -> bool:
    """True if the held-out loss decides, as it does without a metric."""
    return work.word("metric_for_best_model", "loss") in ("loss", "eval_loss")


# Preferences.


def leave_uncompared(work: Translation, objective: Objective, whole: str) -> None:
    """Drop keys that do not go with preference training; ``whole`` is the key for training on prompts."""
    if objective == "sft":
        return
    if work.boolean(whole):
        work.drop(whole, "Only answers are compared, without their prompts.")
    for key in ("neftune_noise_alpha", "noisy_embedding_alpha"):
        work.drop(key, "Preference training has no noise.")


def pair_loss(work: Translation, key: str, kind: str) -> None:
    """Convert the loss of preference pairs."""
    if kind in ("sigmoid", "ipo", "hinge"):
        work.carry(key, "train.dpo_loss", kind)
    else:
        work.drop(key, REASONS["preferences"])


def preference_number(work: Translation, key: str, option: str, *, counts: bool) -> None:
    """Convert a number that has an effect only with some objectives."""
    value = work.number(key)
    if not counts:
        work.keep(key, reason="It has no effect with this objective.")
    elif option in work.settings:
        work.drop(key, f"{option} is set by another key already.")
    else:
        work.carry(key, option, value)


# Trackers.


def switched_trackers(work: Translation, keys: dict[str, Tracker]) -> list[Tracker]:
    """Convert the switches of trackers; returns the trackers that are on."""
    found = [tool for key, tool in keys.items() if work.boolean(key)]
    for key, tool in keys.items():
        work.carry(key, "tracking.tools" if tool in found else None, reason="" if tool in found else SAME)
    return found


def put_trackers(work: Translation, tools: Iterable[Tracker]) -> None:
    """Set the trackers, if there are any."""
    if found := sorted(set(tools)):
        work.put("tracking.tools", found)
