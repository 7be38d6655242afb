"""LLaMA-Factory's training YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.config.importers.data_files import PLACEHOLDER, Written, put_sources
from core.config.importers.llama_factory_rest import NOT_OFFERED
from core.config.importers.redact import shown
from core.config.importers.rules import Choice, Copy, Joint, Rule, Tool, is_one_of, table
from core.config.importers.shared import (
    BATCH_OPTIONS,
    HELD_OUT_OPTIONS,
    LENGTH_OPTIONS,
    OPTIMIZERS,
    SCHEDULE_OPTIONS,
    SCHEDULERS,
    cut_length,
    every,
    held_out,
    joined_batch,
    model_base,
    schedule,
    target_modules,
)
from core.config.importers.translation import Translation
from core.data.llama_factory import read_llama_factory
from core.errors import UserError

_TITLE = "LLaMA-Factory"
_REGISTRY = "dataset_info.json"
#: Entries of the registry that are looked into; each look reads it whole.
_CHECKED = 50
_QUANTIZED = ("quantization_bit", "quantization_method")


def _model(work: Translation) -> None:
    model_base(work, "model_name_or_path")


def _data(work: Translation) -> None:
    directory = work.text("dataset_dir") or "data"
    names = work.texts("dataset")
    held = work.texts("eval_dataset")
    if names:
        put_sources(work, "dataset", "data.train", _sources(work, directory, names))
    else:
        work.change("dataset", "data.train", PLACEHOLDER, "The file names no dataset: put your data.")
    has_rows = bool(held)
    if held:
        put_sources(work, "eval_dataset", "data.eval", _sources(work, directory, held))
    if work.has("dataset_dir"):
        if directory == "ONLINE" or directory.startswith("REMOTE:"):
            work.drop("dataset_dir", "Nothing is fetched from a hub: download the datasets, and name their files.")
        else:
            work.note_change("dataset_dir", "data.train", f"The directory of {_REGISTRY}, which data.train names.")
    _evaluation(work, held_out(work, "val_size", has_rows))


def _sources(work: Translation, directory: str, names: list[str]) -> list[Written]:
    return [_source(work, directory, name, is_checked=place < _CHECKED) for place, name in enumerate(names)]


def _source(work: Translation, directory: str, name: str, *, is_checked: bool) -> Written:
    """An entry of the registry, as ``dataset_info.json#name``; checked, where the registry is there."""
    places = work.places
    if directory == "ONLINE" or directory.startswith("REMOTE:"):
        note = f"{shown('dataset', name, 60)} is a dataset of a hub: download it to that directory, beside this file."
        return Written(name, note, False)
    registry = places.locate(directory) / _REGISTRY
    text = places.write(registry, f"#{name}")
    if not registry.is_file():
        where = shown("dataset_dir", str(registry), 120)
        return Written(text, f"There is no {where}, where {_TITLE} would look.", False)
    if not is_checked:
        return Written(text, "", True)
    note = f"An entry of {_REGISTRY}; paths start where {_TITLE} is run: {shown('path', str(places.base), 80)}."
    try:
        source = read_llama_factory(registry, name)
    except UserError as error:
        return Written(text, str(error), False)
    if not source.path.exists():
        return Written(text, f"The file of {shown('dataset', name, 60)} is not there: {source.path}.", False)
    return Written(text, note, True)


def _evaluation(work: Translation, has_rows: bool) -> None:
    """``eval_steps`` counts only with ``eval_strategy: steps``; without it nothing is measured there."""
    names = [key for key in ("eval_strategy", "evaluation_strategy") if work.has(key)]
    strategy = "no"
    for key in names:
        found = work.values[key]
        strategy = "no" if found is False else str(found).strip().lower()
        if not has_rows and strategy != "no":
            work.drop(key, "Nothing is held out, so there is nothing to measure.")
        elif strategy == "epoch":
            work.drop(key, "The steps of an epoch are not known yet: it is measured at the end. Set eval.every_steps.")
        elif strategy in ("no", "steps"):
            work.carry(key, None, reason="At the end it is measured anyway." if has_rows else "As it is here.")
        else:
            work.drop(key, "It may be no, steps or epoch: it is measured at the end.")
    if not work.has("eval_steps"):
        if has_rows and strategy == "steps":
            steps = work.values.get("logging_steps", 500)
            if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
                work.change("eval_steps", "eval.every_steps", steps, f"Not given: {_TITLE} takes logging_steps.")
    elif not has_rows:
        work.drop("eval_steps", "Nothing is held out, so there is nothing to measure.")
    elif strategy == "steps":
        every(work, "eval_steps", "eval.every_steps", "it is measured at the end. Set eval.every_steps.")
    else:
        work.drop("eval_steps", "It counts only with eval_strategy: steps; it is measured at the end.")


def _method(work: Translation) -> None:
    """QLoRA is adapters on a quantized base."""
    kind = (work.text("finetuning_type") or "lora").lower()
    bits = work.integer("quantization_bit")
    if kind == "lora":
        name = "qlora" if bits else "lora"
        if work.has("finetuning_type"):
            work.carry("finetuning_type", "method.name")
    else:
        name = "lora"
        nouns = {"full": "Training all weights", "freeze": "Training some layers whole", "oft": "OFT"}
        what = f"{nouns.get(kind, 'This method')} is not offered: adapters on a 16-bit base"
        more = ", which stand a higher learning rate." if kind in ("full", "freeze") else "."
        work.drop("finetuning_type", what + more, "method.name", name)
    if bits is None:
        if kind == "lora":
            work.change("quantization_bit", "method.name", name, "No quantization_bit: the base is not quantized.")
    elif kind != "lora":
        work.drop("quantization_bit", "It counts only for adapters.")
    elif bits == 4:
        work.carry("quantization_bit", "method.name", name)
    elif bits:
        work.drop("quantization_bit", f"{bits} bits are not offered: 4; lora keeps 16.", "method.name", name)
    method = (work.text("quantization_method") or "bnb").lower()
    if work.has("quantization_method"):
        if method in ("bnb", "bitsandbytes") or not bits:
            work.carry("quantization_method", None, reason="As it is here.")
        else:
            work.drop("quantization_method", "Quantized by bitsandbytes (NF4) instead.")


def _adapters(work: Translation) -> None:
    """``lora_alpha`` is twice the rank where it is not given."""
    rank = work.integer("lora_rank")
    if rank is None:
        rank = 8
        work.change("lora_rank", "method.rank", rank, f"Not given: {_TITLE} takes 8.")
    else:
        work.carry("lora_rank", "method.rank", rank)
    alpha = work.number("lora_alpha")
    if alpha:
        work.carry("lora_alpha", "method.alpha", alpha)
    else:
        work.change("lora_alpha", "method.alpha", float(2 * rank), f"Not given: {_TITLE} takes twice the rank.")
    names = work.texts("lora_target")
    if names:
        target_modules(work, "lora_target", names)


def _length(work: Translation) -> None:
    cut_length(work, "cutoff_len", 2048)


def _batch(work: Translation) -> None:
    keys = ("deepspeed", "fsdp", "ray_num_workers", "tensor_model_parallel_size")
    several = any(not is_one_of(work.values.get(key, ""), (False, "", 0, 1)) for key in keys)
    devices = " On several, multiply by their number." if several else ""
    joined_batch(work, "per_device_train_batch_size", "gradient_accumulation_steps", (8, 1), devices)


def _schedule(work: Translation) -> None:
    choice = dataclasses.replace(SCHEDULERS, absent="linear", why=f"Not given: {_TITLE} takes linear.")
    absent = (0.0, f"Not given: {_TITLE} warms up nothing.")
    schedule(work, "lr_scheduler_type", "warmup_ratio", "warmup_steps", choice, absent)


def _saves(work: Translation) -> None:
    every(work, "save_steps", "checkpoint.every_steps", "ten checkpoints in a run.")


def _supervise(work: Translation) -> None:
    """History is learned there as here; ``mask_history`` leaves it out."""
    whole, last = work.boolean("train_on_prompt"), work.boolean("mask_history")
    if whole and last:
        work.refuse("mask_history", "does not go with train_on_prompt", "Remove one; LLaMA-Factory refuses both.")
    value = "all" if whole else "last" if last else None
    for key, given in (("train_on_prompt", whole), ("mask_history", last)):
        if given:
            work.carry(key, "data.supervise", value)
        elif work.has(key):
            work.carry(key, None, reason="As it is here: all answers are learned, those of the history too.")


def _precision(work: Translation) -> None:
    wanted = {"pure_bf16": "bf16", "bf16": "bf16", "fp16": "fp16"}
    for key, value in wanted.items():
        given = work.boolean(key)
        if not given:
            if work.has(key):
                work.carry(key, None, reason="It is decided by the device.")
        elif "train.precision" in work.settings:
            work.drop(key, "Another precision is given too.")
        elif key == "pure_bf16":
            work.change(key, "train.precision", value, "Adapters stay in 32 bits, the arithmetic is bf16.")
        else:
            work.carry(key, "train.precision", value)


#: Templates by name; most others are those that the models bring along.
_TEMPLATES = Choice(
    "template.name",
    same={
        "chatml": "chatml",
        "llama3": "llama3",
        "gemma": "gemma",
        "gemma2": "gemma",
        "phi": "phi3",
        "zephyr": "zephyr",
        "vicuna": "vicuna",
        "alpaca": "alpaca",
    },
    near={
        "mistral": ("mistral", "Blanks around [INST] differ by a little."),
        "qwen": ("qwen", "Its default system prompt does not name its maker here."),
    },
    otherwise=(None, "Not one of the templates here: the model's own chat template is used."),
)

_OFFERED: dict[str, Rule] = {
    "model_name_or_path": Joint(_model, ("model.base",)),
    **dict.fromkeys(
        ("dataset", "eval_dataset", "dataset_dir", "val_size", "eval_strategy", "evaluation_strategy", "eval_steps"),
        Joint(_data, ("data.train", "data.eval", "eval.every_steps", *HELD_OUT_OPTIONS)),
    ),
    "template": _TEMPLATES,
    **dict.fromkeys(("finetuning_type", *_QUANTIZED), Joint(_method, ("method.name",))),
    **dict.fromkeys(
        ("lora_rank", "lora_alpha", "lora_target"),
        Joint(_adapters, ("method.rank", "method.alpha", "method.target_modules")),
    ),
    "lora_dropout": Copy("method.dropout", "number", absent=0.0, why="Not given: no dropout."),
    "use_rslora": Copy("method.rslora", "boolean"),
    "use_dora": Copy("method.dora", "boolean"),
    "cutoff_len": Joint(_length, LENGTH_OPTIONS),
    **dict.fromkeys(("train_on_prompt", "mask_history"), Joint(_supervise, ("data.supervise",))),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        Joint(_batch, BATCH_OPTIONS),
    ),
    "learning_rate": Copy("train.learning_rate", "number", absent=5e-5, why=f"Not given: {_TITLE} takes 5e-5."),
    "num_train_epochs": Copy("train.epochs", "number", absent=3.0, why=f"Not given: {_TITLE} takes 3."),
    "max_steps": Copy("train.max_steps", "integer", unset=(-1, 0)),
    **dict.fromkeys(("lr_scheduler_type", "warmup_ratio", "warmup_steps"), Joint(_schedule, SCHEDULE_OPTIONS)),
    "optim": OPTIMIZERS,
    "weight_decay": Copy("train.weight_decay", "number", absent=0.0, why="Not given: no decay."),
    "max_grad_norm": Copy("train.max_grad_norm", "number", absent=1.0, why="Not given: 1."),
    **dict.fromkeys(("pure_bf16", "bf16", "fp16"), Joint(_precision, ("train.precision",))),
    "seed": Copy("train.seed", "integer", absent=42, why="Not given: 42."),
    "disable_gradient_checkpointing": Choice(
        "memory.gradient_checkpointing",
        same={True: "off", False: "on", "true": "off", "false": "on"},
        otherwise=("auto", "It may be true or false: it is decided by what fits."),
    ),
    "save_steps": Joint(_saves, ("checkpoint.every_steps",)),
    "save_total_limit": Copy("checkpoint.keep", "integer", unset=(0,)),
    "temperature": Copy("chat.temperature", "number"),
    "top_p": Copy("chat.top_p", "number"),
    "max_new_tokens": Copy("chat.max_new_tokens", "integer"),
}


def _places(values: Mapping[str, Any]) -> Iterable[str]:
    directory = values.get("dataset_dir", "data")
    model = values.get("model_name_or_path")
    names = [str(Path(directory) / _REGISTRY)] if isinstance(directory, str) and "\0" not in directory else []
    return [*names, *([model] if isinstance(model, str) else [])]


LLAMA_FACTORY = Tool(
    kind="llama-factory",
    title=_TITLE,
    table=table(_OFFERED, NOT_OFFERED),
    signs=(
        *("model_name_or_path", "finetuning_type", "cutoff_len", "lora_rank", "lora_target", "dataset", "stage"),
        *("per_device_train_batch_size", "num_train_epochs", "dataset_dir", "template"),
    ),
    places=_places,
)
