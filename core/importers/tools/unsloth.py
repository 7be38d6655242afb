"""Unsloth: the YAML file of its command line, and those that its Studio saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from core.importers.common.activations import ACTIVATION_OPTIONS, unsloth_activations
from core.importers.common.data_files import PLACEHOLDER, put_sources, write_dataset, write_file
from core.importers.common.packing import PACKING_OPTIONS, unsloth_packing
from core.importers.common.shared import (
    BATCH_OPTIONS,
    EPOCH_OPTIONS,
    LENGTH_OPTIONS,
    METHOD_OPTIONS,
    OPTIMIZERS,
    SCHEDULE_OPTIONS,
    SCHEDULERS,
    SPECIAL_OPTION,
    cut_length,
    epochs,
    joined_batch,
    let_special_tokens_act,
    model_base,
    schedule,
    target_modules,
    train_weights,
)
from core.importers.common.steps import every
from core.importers.common.tracking import TRACKING_OPTIONS, unsloth_trackers
from core.importers.gaps import Gap
from core.importers.rules import Choice, Copy
from core.importers.tool import Joint, Rule, Tool, missing, table
from core.importers.translation import Translation


def _model(work: Translation) -> None:
    model_base(work, "model")


def _data(work: Translation) -> None:
    let_special_tokens_act(work)
    files = work.texts("data.local_dataset") or []
    name = work.text("data.dataset")
    if name and files:
        work.drop("data.dataset", "Unsloth takes the local files where there are any.")
    if files:
        put_sources(work, "data.local_dataset", "data.train", [write_file(work, file) for file in files])
    elif name:
        put_sources(work, "data.dataset", "data.train", [write_dataset(work, name)])
    else:
        work.change("data.dataset", "data.train", PLACEHOLDER, "The file names no data: put yours.")


def _method(work: Translation) -> None:
    kind = (work.text("training.training_type") or "lora").lower()
    in_4bit = work.boolean("training.load_in_4bit")
    name = "lora" if in_4bit is False else "qlora"
    if kind == "lora":
        if work.has("training.training_type"):
            work.carry("training.training_type", "method.name")
        if in_4bit is not None:
            work.carry("training.load_in_4bit", "method.name", name)
        else:
            work.change("training.load_in_4bit", "method.name", name, "Not given: Unsloth takes 4 bits.")
        return
    work.carry("training.training_type", "method.name", "full")
    train_weights(work)
    if in_4bit is not None:
        work.drop("training.load_in_4bit", "It counts only for adapters.")


def _targets(work: Translation) -> None:
    key = "lora.target_modules"
    if names := work.texts(key):
        target_modules(work, key, names)
    else:
        reason = "Not given: Unsloth takes the seven linear layers of a block."
        work.change(key, "method.target_modules", "all-linear", reason)


def _loftq(work: Translation) -> None:
    """LoftQ: it compensates for quantization to 4 bits; Unsloth ignores it on a base that is not quantized."""
    key = "lora.use_loftq"
    if not work.boolean(key):
        if work.has(key):
            work.carry(key, None, reason="As it is here.")
    elif "method.name" in work.settings and work.settings["method.name"].value == "qlora":
        work.carry(key, "method.init", "loftq")
    else:
        work.drop(key, "It makes up for the rounding to 4 bits, and nothing is rounded.")


def _length(work: Translation) -> None:
    cut_length(work, "training.max_seq_length", 2048)


def _length_of_run(work: Translation) -> None:
    epochs(work, "training.num_epochs", "training.max_steps", 3.0)


def _batch(work: Translation) -> None:
    joined_batch(work, "training.batch_size", "training.gradient_accumulation_steps", (2, 4), "")


def _schedule(work: Translation) -> None:
    choice = dataclasses.replace(SCHEDULERS, absent="linear", why="Not given: Unsloth takes linear.")
    schedule(
        work,
        "training.lr_scheduler_type",
        "training.warmup_ratio",
        "training.warmup_steps",
        choice,
        (5.0, "Not given: Unsloth takes 5 steps."),
    )


def _supervise(work: Translation) -> None:
    key = "training.train_on_completions"
    if work.boolean(key):
        work.carry(key, "data.supervise", "assistant")
    else:
        work.change(
            key, "data.supervise", "all", "Unsloth learns the whole text, the questions too; assistant learns answers."
        )


def _evaluation(work: Translation) -> None:
    """Evaluation: the file holds nothing out, so that the interval counts once rows are held out here."""
    key, steps = "training.eval_steps", work.number("training.eval_steps")
    if steps is None:
        return
    if steps >= 1:
        reason = (
            "It counts once rows are held out: Unsloth's command measures nothing; give data.eval or data.eval_share."
        )
        work.change(key, "eval.every_steps", int(steps), reason)
    elif steps > 0:
        work.drop(key, "A share of a number of steps, of which nothing is measured: give data.eval or data.eval_share.")
    else:
        work.carry(key, None, reason="As it is here.")


def _saves(work: Translation) -> None:
    every(work, "training.save_steps", "checkpoint.every_steps", "ten checkpoints in a run.")


_OFFERED: dict[str, Rule] = {
    "model": Joint(_model, ("model.base",)),
    "data.dataset": Joint(_data, ("data.train", SPECIAL_OPTION)),
    "data.local_dataset": Joint(_data, ("data.train", SPECIAL_OPTION)),
    "data.format_type": Choice(
        "data.format",
        same={"auto": "auto", "alpaca": "alpaca", "sharegpt": "sharegpt", "raw": "text"},
        near={"chatml": ("messages", "Conversations with role and content; the template is the model's own.")},
        otherwise=("auto", "No such format is read here: the columns decide."),
    ),
    "training.training_type": Joint(_method, METHOD_OPTIONS),
    "training.load_in_4bit": Joint(_method, METHOD_OPTIONS),
    "training.max_seq_length": Joint(_length, LENGTH_OPTIONS),
    **dict.fromkeys(("training.num_epochs", "training.max_steps"), Joint(_length_of_run, EPOCH_OPTIONS)),
    "training.learning_rate": Copy("train.learning_rate", "number", absent=2e-4, why="Not given: Unsloth takes 2e-4."),
    "training.batch_size": Joint(_batch, BATCH_OPTIONS),
    "training.gradient_accumulation_steps": Joint(_batch, BATCH_OPTIONS),
    "training.lr_scheduler_type": Joint(_schedule, SCHEDULE_OPTIONS),
    "training.warmup_ratio": Joint(_schedule, SCHEDULE_OPTIONS),
    "training.warmup_steps": Joint(_schedule, SCHEDULE_OPTIONS),
    "training.save_steps": Joint(_saves, ("checkpoint.every_steps",)),
    "training.eval_steps": Joint(_evaluation, ("eval.every_steps",)),
    "training.packing": Joint(unsloth_packing, PACKING_OPTIONS),
    "training.weight_decay": Copy("train.weight_decay", "number", absent=0.01, why="Not given: Unsloth takes 0.01."),
    "training.random_seed": Copy("train.seed", "integer", absent=3407, why="Not given: Unsloth takes 3407."),
    "training.optim": dataclasses.replace(
        OPTIMIZERS, absent="adamw_8bit", why="Not given: Unsloth takes the 8-bit AdamW."
    ),
    "training.train_on_completions": Joint(_supervise, ("data.supervise",)),
    "training.gradient_checkpointing": Joint(unsloth_activations, ACTIVATION_OPTIONS),
    "lora.lora_r": Copy("method.rank", "integer", absent=64, why="Not given: Unsloth takes 64."),
    "lora.lora_alpha": Copy(
        "method.alpha", "number", absent=16.0, why="Not given: Unsloth takes 16, whatever the rank."
    ),
    "lora.lora_dropout": Copy("method.dropout", "number"),
    "lora.target_modules": Joint(_targets, ("method.target_modules",)),
    "lora.use_rslora": Copy("method.rslora", "boolean"),
    "lora.use_dora": Copy("method.dora", "boolean"),
    "lora.use_loftq": Joint(_loftq, ("method.init",)),
    **dict.fromkeys(
        ("logging.enable_wandb", "logging.wandb_project", "logging.enable_tensorboard"),
        Joint(unsloth_trackers, TRACKING_OPTIONS),
    ),
    "inference.temperature": Copy("chat.temperature", "number"),
    "inference.top_p": Copy("chat.top_p", "number"),
    "inference.top_k": Copy("chat.top_k", "integer", unset=(-1,)),
    "inference.min_p": Copy("chat.min_p", "number"),
}

_NOT_OFFERED = missing(
    {
        Gap.OUTPUT: "training.output_dir",
        Gap.TEXT_ONLY: "lora.vision_all_linear lora.finetune_vision_layers audio_input audio_type",
        Gap.LAYER_KINDS: ("lora.finetune_language_layers lora.finetune_attention_modules lora.finetune_mlp_modules"),
        Gap.TOKENS: "logging.wandb_token logging.hf_token",
        Gap.TRACKED: "logging.tensorboard_dir",
        Gap.LOGGING: "logging.log_frequency",
        Gap.REMOTE_CODE: "inference.trust_remote_code training.trust_remote_code",
    },
    off={
        "logging.tensorboard_dir": ("runs", ""),
        "lora.finetune_language_layers": (True,),
        "lora.finetune_attention_modules": (True,),
        "lora.finetune_mlp_modules": (True,),
    },
)


def _places(values: Mapping[str, Any]) -> Iterable[str]:
    data = values.get("data")
    listed = data.get("local_dataset") if isinstance(data, dict) else None
    files = listed if isinstance(listed, list) else [listed]
    return [name for name in [*files, values.get("model")] if isinstance(name, str)]


UNSLOTH = Tool(
    kind="unsloth",
    title="Unsloth",
    table=table(_OFFERED, _NOT_OFFERED),
    signs=("training", "lora", "data", "logging", "inference", "model"),
    places=_places,
    sections=frozenset({"data", "training", "lora", "logging", "inference"}),
)
