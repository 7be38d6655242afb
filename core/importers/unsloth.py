"""Unsloth: the YAML file of its command line and of Unsloth Studio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.importers import trainer
from core.importers.data_files import PLACEHOLDER, every, put_sources, write_dataset, write_file
from core.importers.tool import SHARED, Joint, joint, read_tool, shared
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
    if work.word(kind, "lora") != "lora":
        work.carry(kind, "method.name", "full")
        trainer.train_weights(work)
        work.drop(bits, trainer.ADAPTERS_ONLY)
        return
    work.carry(kind, "method.name")
    four_bits(work, bits)


def four_bits(work: Translation, key: str) -> None:
    """Convert a key that asks for a base in 4 bits."""
    if (in_4bit := work.boolean(key)) is None:
        work.change(key, "method.name", "qlora", "Not given: Unsloth's default is 4 bits.")
    else:
        work.carry(key, "method.name", "qlora" if in_4bit else "lora")


def targets(work: Translation, key: str, *, is_text: bool = False) -> None:
    """Convert target modules; ``is_text`` as for :func:`core.importers.trainer.target_modules`."""
    if names := work.texts(key):
        trainer.target_modules(work, key, names, is_text=is_text)
    elif work.value("method.name") != "full":
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


def activations(work: Translation, key: str) -> None:
    """Convert gradient checkpointing; ``unsloth`` offloads the layer inputs to host memory."""
    if work.is_(key, "unsloth"):
        trainer.offload_activations(work, key)
    else:
        SHARED["checkpointing_or_none"].apply(work, key)


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


_CARRIED: dict[str, Joint] = {
    **shared(trainer.model_base, "model"),
    **joint(_data, "data.dataset data.local_dataset"),
    **joint(_method, "training.training_type training.load_in_4bit"),
    **shared(trainer.cut_length, "training.max_seq_length", 2048),
    **shared(trainer.epochs, "training.num_epochs training.max_steps", 3.0),
    **shared(trainer.joined_batch, "training.batch_size training.gradient_accumulation_steps", (2, 4)),
    **shared(trainer.schedule, "training.lr_scheduler_type training.warmup_ratio training.warmup_steps", "linear", 5.0),
    **shared(every, "training.save_steps", "checkpoint.every_steps"),
    "training.eval_steps": _evaluation,
    "training.packing": _packing,
    "training.train_on_completions": _supervise,
    **shared(activations, "training.gradient_checkpointing"),
    **shared(targets, "lora.target_modules"),
    "lora.use_loftq": _loftq,
    **joint(_trackers, "logging.enable_wandb logging.wandb_project logging.enable_tensorboard"),
}


def _places(values: Mapping[str, Any]) -> Iterable[Any]:
    data = values.get("data")
    listed = data.get("local_dataset") if isinstance(data, dict) else None
    return [*(listed if isinstance(listed, list) else [listed]), values.get("model")]


UNSLOTH = read_tool("unsloth", _CARRIED, _places)
