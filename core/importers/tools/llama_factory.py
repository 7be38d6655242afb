"""LLaMA-Factory: its training YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.config.schema import WEIGHT_METHODS
from core.importers.common.activations import ACTIVATION_OPTIONS, llama_factory_activations
from core.importers.common.answers import ANSWER_OPTIONS, llama_factory_answers, llama_factory_chat
from core.importers.common.compiling import COMPILE_KEYS, COMPILE_OPTIONS, OLD_BACKEND, trainer_compiling
from core.importers.common.deepspeed import DEEPSPEED_OPTIONS, deepspeed
from core.importers.common.fsdp import FSDP_OPTIONS, TRAINER_FSDP, names_of, trainer_fsdp
from core.importers.common.kernels import LIGER
from core.importers.common.packing import PACKED_ROWS, PACKING_OPTIONS, llama_factory_packing
from core.importers.common.preference import PREFERENCE_OPTIONS, llama_factory_stage
from core.importers.common.shared import (
    BATCH_OPTIONS,
    EPOCH_OPTIONS,
    LENGTH_OPTIONS,
    LORAPLUS,
    NEFTUNE,
    NO_FP16_WEIGHTS,
    NOTHING_HELD_OUT,
    OPTIMIZERS,
    SCHEDULE_OPTIONS,
    SCHEDULERS,
    cut_length,
    epochs,
    is_measured,
    joined_batch,
    model_base,
    schedule,
    target_modules,
    train_weights,
    trains_weights,
)
from core.importers.common.steps import every, per_epoch, save_strategy
from core.importers.common.stopping import BEST_KEYS, STOPPING_OPTIONS, llama_factory_stopping
from core.importers.common.timeouts import TIMEOUT_OPTION, ddp_timeout
from core.importers.common.tracking import TRACKING_OPTIONS, trainer_trackers
from core.importers.redact import shown
from core.importers.rules import Choice, Copy, is_one_of
from core.importers.tool import Joint, Rule, Tool, table
from core.importers.tools.llama_factory_data import DATA_OPTIONS, REGISTRY, datasets
from core.importers.tools.llama_factory_rest import NOT_OFFERED
from core.importers.translation import Translation

_TITLE = "LLaMA-Factory"
_QUANTIZED = ("quantization_bit", "quantization_method")
_AT_END = "it is measured at the end. Set eval.every_steps."
_TEN = "ten checkpoints in a run. Set checkpoint.every_steps."


def _model(work: Translation) -> None:
    model_base(work, "model_name_or_path", ("model_revision",))


def _length_of_run(work: Translation) -> None:
    epochs(work, "num_train_epochs", "max_steps", 3.0)


def _evaluation(work: Translation) -> None:
    """Evaluation: ``eval_steps`` applies only with ``eval_strategy: steps``; without it there is no evaluation."""
    has_rows = is_measured(work)
    if work.boolean("eval_on_start"):
        if has_rows:
            work.carry("eval_on_start", "eval.baseline", True)
        else:
            work.drop("eval_on_start", NOTHING_HELD_OUT)
    elif work.has("eval_on_start"):
        work.carry("eval_on_start", None, reason="As it is here.")
    strategy = "no"
    for key in [key for key in ("eval_strategy", "evaluation_strategy") if work.has(key)]:
        found = work.values[key]
        strategy = "no" if found is False else str(found).strip().lower()
        if not has_rows and strategy != "no":
            work.drop(key, NOTHING_HELD_OUT)
        elif strategy == "epoch":
            per_epoch(work, key, "eval.every_steps", 1, _AT_END)
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
        work.drop("eval_steps", NOTHING_HELD_OUT)
    elif strategy == "steps":
        every(work, "eval_steps", "eval.every_steps", _AT_END, work.number("num_train_epochs") or 3.0)
    else:
        work.drop("eval_steps", f"It counts only with eval_strategy: steps, and the strategy is {shown('', strategy)}.")


def _device(work: Translation) -> None:
    for key in ("use_cpu", "no_cuda"):
        if work.boolean(key):
            work.carry(key, "hardware.device", "cpu")
        elif work.has(key):
            work.carry(key, None, reason="As it is here.")


def _layers(work: Translation, kind: str) -> None:
    """Trainable layers: the last ones by a positive number, the first ones by a negative one."""
    layers = work.integer("freeze_trainable_layers")
    if layers is not None and kind == "freeze":
        if layers < 0:
            work.put("method.trainable_end", "first")
        work.carry("freeze_trainable_layers", "method.trainable_layers", abs(layers))
    elif layers is not None:
        work.carry("freeze_trainable_layers", None, reason="It counts only for freeze.")
    modules = work.text("freeze_trainable_modules")
    if modules is not None and (modules.strip().lower() == "all" or kind != "freeze"):
        work.carry("freeze_trainable_modules", None, reason="All of a layer is trained, as it is here.")
    elif modules is not None:
        work.drop("freeze_trainable_modules", "All of a layer is trained, not some of its modules.")


def _method(work: Translation) -> None:
    """Method: QLoRA is LoRA on a quantized base."""
    kind = (work.text("finetuning_type") or "lora").lower()
    bits = work.integer("quantization_bit")
    if kind == "lora":
        name = "qlora" if bits else "lora"
        if work.has("finetuning_type"):
            work.carry("finetuning_type", "method.name")
    elif kind in WEIGHT_METHODS:
        name = kind
        work.carry("finetuning_type", "method.name", name)
        train_weights(work)
    else:
        name = "lora"
        noun = "OFT" if kind == "oft" else "This method"
        work.drop("finetuning_type", f"{noun} is not offered: adapters on a 16-bit base.", "method.name", name)
    _layers(work, kind)
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
    """Adapters: ``lora_alpha`` defaults to twice the rank."""
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
    if (work.boolean("packing") or work.boolean("neat_packing")) and is_one_of(
        work.values.get("stage", "sft"), ("sft",)
    ):
        devices += PACKED_ROWS
    joined_batch(work, "per_device_train_batch_size", "gradient_accumulation_steps", (8, 1), devices)


def _schedule(work: Translation) -> None:
    choice = dataclasses.replace(SCHEDULERS, absent="linear", why=f"Not given: {_TITLE} takes linear.")
    absent = (0.0, f"Not given: {_TITLE} warms up nothing.")
    schedule(work, "lr_scheduler_type", "warmup_ratio", "warmup_steps", choice, absent)


def _adafactor(work: Translation) -> None:
    """Adafactor: an old key of its own, which counts before ``optim``."""
    if work.boolean("adafactor"):
        work.carry("adafactor", OPTIMIZERS.option, "adafactor")
        if work.has("optim"):
            work.drop("optim", "adafactor is given too, and counts.")
    elif work.has("adafactor"):
        work.carry("adafactor", None, reason="As it is here.")


def _saves(work: Translation) -> None:
    save_strategy(work, _TEN)
    every(work, "save_steps", "checkpoint.every_steps", _TEN, work.number("num_train_epochs") or 3.0)


def _supervise(work: Translation) -> None:
    """Supervised turns: earlier turns are learned there as here; ``mask_history`` leaves them out."""
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
        elif value == "fp16" and trains_weights(work):
            work.drop(key, NO_FP16_WEIGHTS)
        elif key == "pure_bf16" and not trains_weights(work):
            work.change(key, "train.precision", value, "Adapters stay in 32 bits, the arithmetic is bf16.")
        else:
            work.carry(key, "train.precision", value)


def _thinking(work: Translation) -> None:
    """``enable_thinking``: true is what templates with reasoning have without it."""
    key = "enable_thinking"
    given = work.boolean(key)
    if given is None:
        return
    if given:
        work.carry(key, None, reason="As it is here: reasoning is on where the chat template has it.")
    elif work.values.get("template") in (*_TEMPLATES.same, *_TEMPLATES.near):
        work.carry(key, None, reason="The template writes no reasoning.")
    else:
        reason = "Only where the model's chat template reads it; else remove it."
        work.change(key, "template.variables", {key: False}, reason)


#: Templates by name; most others are the models' own.
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
    **dict.fromkeys(("model_name_or_path", "model_revision"), Joint(_model, ("model.base",))),
    **dict.fromkeys(
        ("dataset", "eval_dataset", "dataset_dir", "val_size", "mix_strategy", "interleave_probs", "max_samples"),
        Joint(datasets, DATA_OPTIONS),
    ),
    **dict.fromkeys(
        ("stage", "pref_loss", "pref_beta", "kto_chosen_weight", "kto_rejected_weight"),
        Joint(llama_factory_stage, PREFERENCE_OPTIONS),
    ),
    "template": _TEMPLATES,
    "enable_thinking": Joint(_thinking, ("template.variables",)),
    **dict.fromkeys(
        ("finetuning_type", "freeze_trainable_layers", "freeze_trainable_modules", *_QUANTIZED),
        Joint(
            _method, ("method.name", "method.trainable_layers", "method.trainable_end", "memory.optimizer_in_backward")
        ),
    ),
    **dict.fromkeys(
        ("lora_rank", "lora_alpha", "lora_target"),
        Joint(_adapters, ("method.rank", "method.alpha", "method.target_modules")),
    ),
    "lora_dropout": Copy("method.dropout", "number", absent=0.0, why="Not given: no dropout."),
    "use_rslora": Copy("method.rslora", "boolean"),
    "use_dora": Copy("method.dora", "boolean"),
    "pissa_init": Choice(
        "method.init",
        same={True: "pissa", "true": "pissa", False: "default", "false": "default"},
        otherwise=("default", "It may be true or false: adapters begin without effect."),
    ),
    "loraplus_lr_ratio": LORAPLUS,
    "neftune_noise_alpha": NEFTUNE,
    "cutoff_len": Joint(_length, LENGTH_OPTIONS),
    **dict.fromkeys(("train_on_prompt", "mask_history"), Joint(_supervise, ("data.supervise",))),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        Joint(_batch, BATCH_OPTIONS),
    ),
    "learning_rate": Copy("train.learning_rate", "number", absent=5e-5, why=f"Not given: {_TITLE} takes 5e-5."),
    **dict.fromkeys(("num_train_epochs", "max_steps"), Joint(_length_of_run, EPOCH_OPTIONS)),
    # After the rules for the length of a step and of the run.
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "eval_steps", "eval_on_start"),
        Joint(_evaluation, ("eval.every_steps", "eval.baseline")),
    ),
    **dict.fromkeys(("early_stopping_steps", *BEST_KEYS), Joint(llama_factory_stopping, STOPPING_OPTIONS)),
    "predict_with_generate": Joint(llama_factory_answers, ANSWER_OPTIONS),
    **dict.fromkeys(("packing", "neat_packing"), Joint(llama_factory_packing, PACKING_OPTIONS)),
    **dict.fromkeys((*COMPILE_KEYS, OLD_BACKEND), Joint(trainer_compiling, COMPILE_OPTIONS)),
    **dict.fromkeys(("lr_scheduler_type", "warmup_ratio", "warmup_steps"), Joint(_schedule, SCHEDULE_OPTIONS)),
    "optim": OPTIMIZERS,
    "adafactor": Joint(_adafactor, (OPTIMIZERS.option,)),
    "weight_decay": Copy("train.weight_decay", "number", absent=0.0, why="Not given: no decay."),
    "max_grad_norm": Copy("train.max_grad_norm", "number", absent=1.0, why="Not given: 1."),
    **dict.fromkeys(("pure_bf16", "bf16", "fp16"), Joint(_precision, ("train.precision",))),
    "seed": Copy("train.seed", "integer", absent=42, why="Not given: 42."),
    "full_determinism": Choice(
        "train.deterministic",
        same={True: "strict", "true": "strict", False: None, "false": None},
        otherwise=("auto", "It may be true or false: exact on a CPU, to rounding on a GPU."),
    ),
    **dict.fromkeys(
        (
            *("disable_gradient_checkpointing", "use_unsloth_gc"),
            *("gradient_checkpointing", "activation_checkpointing"),
        ),
        Joint(llama_factory_activations, ACTIVATION_OPTIONS),
    ),
    **dict.fromkeys(("enable_liger_kernel", "use_liger_kernel"), LIGER),
    "deepspeed": Joint(deepspeed, DEEPSPEED_OPTIONS),
    **dict.fromkeys(TRAINER_FSDP, Joint(trainer_fsdp, FSDP_OPTIONS)),
    "ddp_timeout": Joint(ddp_timeout, (TIMEOUT_OPTION,)),
    **dict.fromkeys(("save_steps", "save_strategy"), Joint(_saves, ("checkpoint.every_steps",))),
    "save_total_limit": Copy("checkpoint.keep", "integer", unset=(0,)),
    **dict.fromkeys(("use_cpu", "no_cuda"), Joint(_device, ("hardware.device",))),
    **dict.fromkeys(("report_to", "run_name", "project"), Joint(trainer_trackers, TRACKING_OPTIONS)),
    "do_sample": Joint(llama_factory_chat, ("chat.temperature",)),
    "temperature": Copy("chat.temperature", "number"),
    "top_p": Copy("chat.top_p", "number"),
    "top_k": Copy("chat.top_k", "integer", unset=(-1,)),
    "repetition_penalty": Copy("chat.repetition_penalty", "number"),
    "max_new_tokens": Copy("chat.max_new_tokens", "integer"),
}


def _places(values: Mapping[str, Any]) -> Iterable[str]:
    directory = values.get("dataset_dir", "data")
    model = values.get("model_name_or_path")
    names = [str(Path(directory) / REGISTRY)] if isinstance(directory, str) and "\0" not in directory else []
    return [*names, *([model] if isinstance(model, str) else []), *names_of(values)]


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
