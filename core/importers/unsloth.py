"""Unsloth: the YAML file of its command line and of Unsloth Studio."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from core.importers import trainer
from core.importers.data_files import PLACEHOLDER, every, put_sources, write_dataset, write_file
from core.importers.tool import Choice, Copy, Rule, Tool, joint, shared, table, unsupported
from core.importers.translation import Translation


def _data(work: Translation) -> None:
    trainer.special_tokens_act(work)
    files, name = work.texts("data.local_dataset") or [], work.text("data.dataset")
    if files:
        work.drop("data.dataset", "Local files take precedence.")
        put_sources(work, "data.local_dataset", "data.train", [write_file(work, file) for file in files])
    elif name:
        put_sources(work, "data.dataset", "data.train", [write_dataset(work, name)])
    else:
        work.change("data.dataset", "data.train", PLACEHOLDER, "The file names no data: put yours.")


def _method(work: Translation) -> None:
    kind, bits = "training.training_type", "training.load_in_4bit"
    in_4bit = work.boolean(bits)
    if work.word(kind, "lora") != "lora":
        work.carry(kind, "method.name", "full")
        trainer.train_weights(work)
        work.drop(bits, "It counts only for adapters.")
        return
    work.carry(kind, "method.name")
    if in_4bit is None:
        work.change(bits, "method.name", "qlora", "Not given: Unsloth's default is 4 bits.")
    else:
        work.carry(bits, "method.name", "qlora" if in_4bit else "lora")


def _targets(work: Translation) -> None:
    key = "lora.target_modules"
    if names := work.texts(key):
        trainer.target_modules(work, key, names)
    else:
        reason = "Not given: Unsloth's default is the seven linear layers of a block."
        work.change(key, "method.target_modules", "all-linear", reason)


def _loftq(work: Translation) -> None:
    """Convert LoftQ, which compensates for 4-bit quantization; Unsloth ignores it on an unquantized base."""
    key = "lora.use_loftq"
    if not work.boolean(key):
        work.keep(key)
    elif work.value("method.name") == "qlora":
        work.carry(key, "method.init", "loftq")
    else:
        work.drop(key, "It compensates for rounding to 4 bits, and nothing is rounded.")


def _supervise(work: Translation) -> None:
    key = "training.train_on_completions"
    if work.boolean(key):
        work.carry(key, "data.supervise", "assistant")
    else:
        reason = "Unsloth learns the whole text, the prompts too; assistant learns answers."
        work.change(key, "data.supervise", "all", reason)


def _evaluation(work: Translation) -> None:
    """Convert the evaluation interval, which takes effect once rows are held out here; the file holds none out."""
    key, steps = "training.eval_steps", work.number("training.eval_steps")
    reason = "Unsloth's command evaluates nothing: give data.eval or data.eval_share."
    if steps is None or steps <= 0:
        work.keep(key)
    elif steps >= 1:
        work.change(key, "eval.every_steps", int(steps), reason)
    else:
        work.drop(key, reason)


def _packing(work: Translation) -> None:
    key = "training.packing"
    if work.boolean(key):
        trainer.pack(work, key, trainer.FILLED)
    work.keep(key)


_CHECKPOINTING = Choice(
    "memory.gradient_checkpointing",
    same={"true": "on", True: "on", "none": "off", "false": "off", False: "off"},
    otherwise="auto",
)


def _activations(work: Translation) -> None:
    """Convert gradient checkpointing; ``unsloth`` offloads the layer inputs to host memory."""
    key = "training.gradient_checkpointing"
    if work.is_(key, "unsloth"):
        trainer.offload_activations(work, key)
    _CHECKPOINTING.apply(work, key)


def _trackers(work: Translation) -> None:
    """Convert trackers; the project applies only to W&B."""
    project = "logging.wandb_project"
    tools = trainer.switched_trackers(
        work, {"logging.enable_wandb": "wandb", "logging.enable_tensorboard": "tensorboard"}
    )
    if "wandb" in tools:
        work.carry(project, "tracking.project", work.text(project))
    work.keep(project)
    trainer.put_trackers(work, tools)


_CARRIED: dict[str, Rule] = {
    **shared(trainer.model_base, "model"),
    **joint(_data, "data.dataset data.local_dataset"),
    "data.format_type": Choice(
        "data.format",
        same={"auto": "auto", "alpaca": "alpaca", "sharegpt": "sharegpt", "raw": "text"},
        near={"chatml": ("messages", "Conversations with role and content; the template is the model's own.")},
        otherwise="auto",
    ),
    **joint(_method, "training.training_type training.load_in_4bit"),
    **shared(trainer.cut_length, "training.max_seq_length", 2048),
    **shared(trainer.epochs, "training.num_epochs training.max_steps", 3.0),
    "training.learning_rate": Copy("train.learning_rate", "number", 2e-4),
    **shared(trainer.joined_batch, "training.batch_size training.gradient_accumulation_steps", (2, 4)),
    **shared(trainer.schedule, "training.lr_scheduler_type training.warmup_ratio training.warmup_steps", "linear", 5.0),
    **shared(every, "training.save_steps", "checkpoint.every_steps"),
    "training.eval_steps": _evaluation,
    "training.packing": _packing,
    "training.weight_decay": Copy("train.weight_decay", "number", 0.01),
    "training.random_seed": Copy("train.seed", "integer", 3407),
    "training.optim": dataclasses.replace(trainer.OPTIMIZERS, absent="adamw_8bit"),
    "training.train_on_completions": _supervise,
    "training.gradient_checkpointing": _activations,
    "lora.lora_r": Copy("method.rank", "integer", 64),
    "lora.lora_alpha": Copy("method.alpha", "number", 16.0),
    "lora.lora_dropout": Copy("method.dropout", "number"),
    "lora.target_modules": _targets,
    "lora.use_rslora": Copy("method.rslora", "boolean"),
    "lora.use_dora": Copy("method.dora", "boolean"),
    "lora.use_loftq": _loftq,
    **joint(_trackers, "logging.enable_wandb logging.wandb_project logging.enable_tensorboard"),
    "inference.temperature": Copy("chat.temperature", "number"),
    "inference.top_p": Copy("chat.top_p", "number"),
    "inference.top_k": Copy("chat.top_k", "integer", unset=(-1,)),
    "inference.min_p": Copy("chat.min_p", "number"),
}


def _places(values: Mapping[str, Any]) -> Iterable[str]:
    data = values.get("data")
    listed = data.get("local_dataset") if isinstance(data, dict) else None
    files = listed if isinstance(listed, list) else [listed]
    return [name for name in [*files, values.get("model")] if isinstance(name, str)]


UNSLOTH = Tool(
    kind="unsloth",
    title="Unsloth",
    table=table(_CARRIED, unsupported("unsloth")),
    signs=("training", "lora", "data", "logging", "inference", "model"),
    places=_places,
    sections=frozenset({"data", "training", "lora", "logging", "inference"}),
)
