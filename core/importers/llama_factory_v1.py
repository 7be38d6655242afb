"""LLaMA-Factory's second generation: its training YAML, with tables for adapters, quantization and several cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.config.choices import Objective
from core.data.registries.resolve import resolve_source
from core.errors import UserError
from core.hub_uri import absolute
from core.importers import trainer
from core.importers.data_files import PLACEHOLDER, every, per_epoch, put_sources, write_dataset
from core.importers.distributed import deepspeed, fsdp2
from core.importers.llama_factory import trained_layers
from core.importers.tool import REASONS, Joint, joint, read_tool, shared
from core.importers.translation import Translation

_FILE = "dist_config.config_file"


def _data(work: Translation) -> None:
    """Convert the data: a list of datasets, a file, or a dataset of the Hub."""
    trainer.special_tokens_act(work)
    if name := work.text("train_dataset"):
        put_sources(work, "train_dataset", "data.train", [write_dataset(work, name)])
    else:
        work.change("train_dataset", "data.train", PLACEHOLDER, "The file names no dataset: put your data.")
    if name := work.text("eval_dataset"):
        also = f"{work.title} evaluates nothing yet in this generation; its loss is measured here."
        put_sources(work, "eval_dataset", "data.eval", [write_dataset(work, name)], also)


def _preferences(work: Translation) -> None:
    """Convert preferences. The command decides there; here, rows with comparisons do, where they can be read."""
    kind = work.word("pref_loss", "sigmoid")
    objective: Objective = "sft"
    if _compares(work):
        objective = "orpo" if kind == "orpo" else "dpo"
        work.put("train.objective", objective, "The rows have comparisons; the command decides in LLaMA-Factory.")
    if objective == "dpo":
        trainer.pair_loss(work, "pref_loss", kind)
    work.keep("pref_loss", reason="" if objective == "orpo" else "It has no effect with this objective.")
    trainer.preference_number(work, "pref_beta", "train.beta", counts=objective != "sft")


def _compares(work: Translation) -> bool:
    """True if the first rows of the data have comparisons."""
    try:
        sources = resolve_source(absolute(str(work.value("data.train")), work.places.home or work.places.base))
        with sources[0].open() as file:
            return sources[0].recognize(file).format == "preference"
    except (UserError, OSError, IndexError):
        # The run itself reports errors in the files.
        return False


def _method(work: Translation) -> None:
    """Convert the method: that of ``peft_config``, else all weights; adapters may have a quantized base."""
    key, bits_key = "peft_config.name", "quant_config.quantization_bit"
    kind, backend, bits = work.word(key), work.word("quant_config.name"), work.integer(bits_key)
    if not kind or kind == "freeze":
        reason = "Without peft_config all weights are trained."
        work.carry(key, "method.name", "freeze")
        work.change(key, "method.name", "full", reason)
        trainer.train_weights(work)
        for each in ("quant_config.name", bits_key, "peft_config.target_modules"):
            work.drop(each, trainer.ADAPTERS_ONLY)
    elif kind != "lora":
        work.drop(key, REASONS["adapters"], "method.name", "lora")
    trained_layers(work, "peft_config.", is_freeze=kind == "freeze")
    bits = bits or (4 if backend == "bnb" else None)
    work.carry(key, "method.name", "qlora" if bits else "lora")
    if bits == 8:
        work.drop(bits_key, "8 bits are not available: 4; lora keeps 16.")
    work.keep("quant_config.name", bits_key)
    if names := work.texts("peft_config.target_modules"):
        trainer.target_modules(work, "peft_config.target_modules", names)


def _batch(work: Translation) -> None:
    micro, total = "micro_batch_size", "global_batch_size"
    at_once, rows = work.integer(micro), work.integer(total)
    for key, number in ((micro, at_once), (total, rows)):
        if number is not None and number < 1:
            work.refuse(key, "must be 1 or more")
    work.carry(micro, "train.micro_batch_size", at_once)
    work.carry(total, "train.batch_size", rows)
    work.change(total, "train.batch_size", at_once or 1, "Not given: one micro-batch on each device.")


def _precision(work: Translation) -> None:
    if work.boolean("bf16") is False:
        work.carry("bf16", "train.precision", "fp32")
    elif work.has("bf16"):
        trainer.precision(work, "bf16", "bf16")


def _packing(work: Translation) -> None:
    key = "batching_strategy"
    if work.is_(key, "padding_free"):
        trainer.pack(work, key)
    elif work.is_(key, "normal"):
        work.keep(key)
    work.drop(key, REASONS["data"])


def _several(work: Translation) -> None:
    """Convert ``dist_config``: FSDP2, or a file of DeepSpeed."""
    key, kind = "dist_config.name", work.word("dist_config.name")
    if kind == "deepspeed":
        deepspeed(work, _FILE)
        if "distributed.strategy" in work.settings:
            work.carry(key, "distributed.strategy")
        work.carry(key, "distributed.strategy", "deepspeed")
    elif kind:
        fsdp2(work, key, "" if kind == "fsdp2" else f"{kind} is not available.")
        if work.boolean("dist_config.offload_params"):
            work.carry("dist_config.offload_params", "distributed.offload", "all")
    work.keep("dist_config.offload_params", _FILE)


def _saves(work: Translation) -> None:
    share = work.number("save_epochs")
    if share is not None and share > 0:
        per_epoch(work, "save_epochs", "checkpoint.every_steps", 1 / share)
    if share:
        work.drop("save_steps", "save_epochs is given too, and counts.")
    work.keep("save_epochs")
    every(work, "save_steps", "checkpoint.every_steps")


_CARRIED: dict[str, Joint] = {
    **shared(trainer.model_base, "model"),
    **joint(_data, "train_dataset eval_dataset"),
    **joint(_preferences, "pref_loss pref_beta"),
    **joint(
        _method,
        "peft_config.name peft_config.target_modules peft_config.freeze_trainable_layers "
        "peft_config.freeze_trainable_modules quant_config.name quant_config.quantization_bit",
    ),
    **shared(trainer.cut_length, "cutoff_len", 2048),
    **joint(_batch, "micro_batch_size global_batch_size"),
    **shared(trainer.epochs, "num_train_epochs max_steps", 3.0),
    **shared(
        trainer.schedule,
        "lr_scheduler_config.name lr_scheduler_config.warmup_ratio lr_scheduler_config.warmup_steps",
        "constant",
        0.0,
    ),
    "bf16": _precision,
    "batching_strategy": _packing,
    **joint(_several, f"dist_config.name dist_config.offload_params {_FILE}"),
    **joint(_saves, "save_steps save_epochs"),
}


def _places(values: Mapping[str, Any]) -> Iterable[Any]:
    several = values.get("dist_config")
    file = several.get("config_file") if isinstance(several, dict) else None
    return [values.get("model"), values.get("train_dataset"), values.get("eval_dataset"), file]


LLAMA_FACTORY_V1 = read_tool("llama-factory-v1", _CARRIED, _places)
