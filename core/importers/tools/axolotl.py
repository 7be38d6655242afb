"""Axolotl: its training YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.config.schema import MethodSection
from core.importers.common.activations import ACTIVATION_OPTIONS, axolotl_activations
from core.importers.common.answers import SAMPLE_OPTIONS, axolotl_samples
from core.importers.common.compiling import COMPILE_KEYS, COMPILE_OPTIONS, COMPILE_SETTINGS, axolotl_compiling
from core.importers.common.deepspeed import DEEPSPEED_OPTIONS, deepspeed
from core.importers.common.fsdp import AXOLOTL_FSDP, FSDP_OPTIONS, axolotl_fsdp, names_of
from core.importers.common.kernels import LIGER, axolotl_plugins
from core.importers.common.packing import PACKED_ROWS, PACKING_OPTIONS, axolotl_packing
from core.importers.common.preference import PREFERENCE_OPTIONS, axolotl_rl
from core.importers.common.shared import (
    BATCH_OPTIONS,
    EPOCH_OPTIONS,
    HELD_OUT_OPTIONS,
    LORAPLUS,
    METHOD_OPTIONS,
    NEFTUNE,
    NO_FP16_WEIGHTS,
    NOTHING_HELD_OUT,
    OPTIMIZERS,
    SCHEDULE_OPTIONS,
    SCHEDULERS,
    SPECIAL_OPTION,
    epochs,
    held_out,
    is_measured,
    joined_batch,
    let_special_tokens_act,
    model_base,
    schedule,
    target_modules,
    train_weights,
    trains_weights,
)
from core.importers.common.steps import every, per_epoch, save_strategy
from core.importers.common.stopping import (
    BEST_KEYS,
    STOPPING_OPTIONS,
    WATCHDOG_KEYS,
    WATCHDOG_OPTIONS,
    axolotl_stopping,
    axolotl_watchdog,
)
from core.importers.common.timeouts import TIMEOUT_OPTION, ddp_timeout
from core.importers.common.tracking import TRACKING_OPTIONS, axolotl_trackers
from core.importers.rules import Choice, Copy, is_one_of
from core.importers.tool import Joint, Rule, Tool, table
from core.importers.tools.axolotl_data import DATA_OPTIONS, datasets
from core.importers.tools.axolotl_rest import NOT_OFFERED
from core.importers.tools.axolotl_template import choose_variables
from core.importers.translation import Translation

_TITLE = "Axolotl"


_AT_END = "it is measured at the end. Set eval.every_steps."
_TEN = "ten checkpoints in a run. Set checkpoint.every_steps."


def _model(work: Translation) -> None:
    model_base(work, "base_model", ("revision_of_model", "model_revision"))


def _data(work: Translation) -> None:
    let_special_tokens_act(work)
    held_out(work, "val_set_size", datasets(work))


def _epochs(work: Translation) -> float:
    return work.number("num_epochs") or 1.0


def _length_of_run(work: Translation) -> None:
    epochs(work, "num_epochs", "max_steps", 1.0)


def _evaluation(work: Translation) -> None:
    """Evaluation: ``evals_per_epoch`` becomes a share of all steps in Axolotl."""
    has_rows, times = is_measured(work), work.number("evals_per_epoch")
    if times is not None:
        if times <= 0 or not has_rows:
            _leave(work, "evals_per_epoch", has_rows, is_off=times <= 0)
        else:
            per_epoch(work, "evals_per_epoch", "eval.every_steps", times, _AT_END, _epochs(work))
    for key in ("eval_strategy", "evaluation_strategy"):
        value = work.values.get(key)
        if value is None:
            continue
        if is_one_of(value, ("epoch",)) and has_rows:
            if "eval.every_steps" in work.settings or work.has("eval_steps"):
                work.drop(key, "Steps are given too, and count.")
            else:
                per_epoch(work, key, "eval.every_steps", 1, _AT_END)
        else:
            _leave(work, key, has_rows, is_off=is_one_of(value, (0, False, "no", "steps")))
    if has_rows:
        every(work, "eval_steps", "eval.every_steps", _AT_END, _epochs(work))
    elif work.has("eval_steps"):
        work.drop("eval_steps", NOTHING_HELD_OUT)


def _leave(work: Translation, key: str, has_rows: bool, *, is_off: bool) -> None:
    if is_off:
        work.carry(key, None, reason="At the end it is measured anyway." if has_rows else "As it is here.")
    else:
        work.drop(key, f"It may be no, steps or epoch: {_AT_END}" if has_rows else NOTHING_HELD_OUT)


def _method(work: Translation) -> None:
    """Method: Axolotl's own validation; what it refuses is refused here, what it ignores has no effect here."""
    adapter = (work.text("adapter") or "").lower()
    in_4bit, in_8bit, gptq = (work.boolean(key) for key in ("load_in_4bit", "load_in_8bit", "gptq"))
    if not adapter:
        for key, given in (("load_in_4bit", in_4bit), ("load_in_8bit", in_8bit)):
            if given:
                work.refuse(key, "needs an adapter, in Axolotl too", "Write adapter: qlora, or remove it.")
        work.change("adapter", "method.name", "full", "Without an adapter all weights are trained.")
        train_weights(work)
    elif adapter == "qlora":
        if in_8bit or gptq:
            work.refuse("load_in_8bit" if in_8bit else "gptq", "does not go with adapter: qlora", "Remove it.")
        if not in_4bit:
            work.refuse("adapter", "is qlora, which needs load_in_4bit: true in Axolotl", "Add it, or write lora.")
        work.carry("adapter", "method.name", "qlora")
    elif adapter == "lora":
        work.carry("adapter", "method.name", None if in_8bit else "lora")
    else:
        work.drop("adapter", "This kind of adapter is not offered: LoRA on a 16-bit base.", "method.name", "lora")
    if in_8bit:
        reason = "8 bits are not offered: 4, with less memory; lora keeps 16."
        work.drop("load_in_8bit", reason, "method.name", "qlora")
    if in_4bit and adapter == "qlora":
        work.carry("load_in_4bit", "method.name")
    elif in_4bit:
        work.drop("load_in_4bit", "Axolotl quantizes to 4 bits only with adapter: qlora.")
    for key in ("load_in_4bit", "load_in_8bit", "gptq"):
        if work.has(key) and not work.is_done(key):
            given = work.boolean(key)
            if given:
                reason = "A GPTQ model is decoded to 16 bit while loading; method.name = qlora takes less memory."
                work.note_change(key, "model.base", reason)
            else:
                work.carry(key, None, reason="As it is here.")


def _adapters(work: Translation) -> None:
    """Adapters: rank and alpha have no defaults in Axolotl."""
    ours = MethodSection()
    is_lora = work.has("adapter")
    for key, option, default in (("lora_r", "method.rank", ours.rank), ("lora_alpha", "method.alpha", ours.alpha)):
        value = work.integer(key) if key == "lora_r" else work.number(key)
        if value is not None:
            work.carry(key, option, value)
        elif is_lora:
            work.change(key, option, default, f"Not given, though {_TITLE} wants it: the default here.")
    _expert_adapters(work)
    linear = work.boolean("lora_target_linear")
    if linear is False:
        work.carry("lora_target_linear", None, reason="lora_target_modules says which.")
    raw = work.values.get("lora_target_modules")
    names = [raw.strip()] if isinstance(raw, str) and raw.strip() else work.texts("lora_target_modules") or []
    if linear:
        work.carry("lora_target_linear", "method.target_modules", "all-linear")
        if names:
            work.drop("lora_target_modules", "All linear layers get adapters; others cannot be named beside them.")
    elif names:
        target_modules(work, "lora_target_modules", names, is_text=isinstance(raw, str))
    elif is_lora:
        reason = "No layers are named: all linear ones."
        work.change("lora_target_modules", "method.target_modules", "all-linear", reason)


def _expert_adapters(work: Translation) -> None:
    """Adapters on parameters: those of experts, which have them on both matrices here."""
    key = "lora_target_parameters"
    raw = work.values.get(key)
    names = [raw] if isinstance(raw, str) else work.texts(key) or []
    matrices = [name for name in names if "experts." in name and name.endswith("_proj")]
    if names and len(matrices) < len(names):
        work.drop(key, "Adapters on parameters are offered for the matrices of experts, all of them.")
    elif any("down" in name for name in names) and any("up" in name for name in names):
        work.carry(key, "method.target_experts", "on")
    elif names:
        work.change(key, "method.target_experts", "on", "Experts have adapters on both of their matrices.")


_BEGINNINGS = Choice(
    "method.init",
    same={True: "default", "true": "default", "pissa": "pissa", "loftq": "loftq"},
    near={
        f"pissa_niter_{count}": ("pissa", "Its decomposition is exact for small layers, else of 4 iterations.")
        for count in (1, 2, 4, 8, 16, 32)
    },
    otherwise=("default", "No such beginning is offered: adapters begin without effect."),
)


def _beginning(work: Translation) -> None:
    """Initialization: LoftQ compensates for quantization to 4 bits, and differs on a base that is not quantized."""
    key = "peft_init_lora_weights"
    method = work.settings.get("method.name")
    if work.values.get(key) == "loftq" and (method is None or method.value != "qlora"):
        work.drop(key, "It makes up for the rounding to 4 bits, and nothing is rounded: adapters begin without effect.")
    else:
        work.choose(key, _BEGINNINGS)


def _noise(work: Translation) -> None:
    """NEFTune: its old key counts where the new one is not given; Axolotl refuses both."""
    old, new = "noisy_embedding_alpha", "neftune_noise_alpha"
    if work.has(old) and work.has(new):
        work.refuse(old, f"is the old name of {new}, which is given too", "Remove it.")
    work.copy(old, NEFTUNE)


def _batch(work: Translation) -> None:
    micro, times, total = (
        work.integer(key) for key in ("micro_batch_size", "gradient_accumulation_steps", "batch_size")
    )
    if total is not None and times is None and total >= (micro or 1) > 0:
        # As Axolotl does; its sentence for the one then fits the other.
        work.values["gradient_accumulation_steps"] = total // (micro or 1)
        work.carry("batch_size", "train.batch_size")
    elif total is not None:
        work.drop("batch_size", "gradient_accumulation_steps is given too, and counts.")
    devices = ""
    if any(work.has(key) for key in ("deepspeed", "fsdp", "fsdp_config", "dp_shard_size", "use_ray")):
        devices = " On several, multiply by their number."
    if work.values.get("sample_packing") is True:
        devices += PACKED_ROWS
    joined_batch(work, "micro_batch_size", "gradient_accumulation_steps", (1, 1), devices)


def _schedule(work: Translation) -> None:
    absent = (0.03, f"Not given: {_TITLE} takes 3% of the steps, at most 100.")
    schedule(work, "lr_scheduler", "warmup_ratio", "warmup_steps", SCHEDULERS, absent)


def _saves(work: Translation) -> None:
    times = work.number("saves_per_epoch")
    if times is not None and times > 0:
        per_epoch(work, "saves_per_epoch", "checkpoint.every_steps", times, _TEN, _epochs(work))
    elif times is not None:
        work.carry("saves_per_epoch", None, reason="It says nothing here either.")
    save_strategy(work, _TEN)
    every(work, "save_steps", "checkpoint.every_steps", _TEN, _epochs(work))


def _supervise(work: Translation) -> None:
    if work.boolean("train_on_inputs"):
        work.carry("train_on_inputs", "data.supervise", "all")
    elif work.has("train_on_inputs"):
        work.carry("train_on_inputs", None, reason="As it is here: the answers are learned.")


def _precision(work: Translation) -> None:
    bf16 = work.values.get("bf16")
    if isinstance(bf16, str) and bf16.strip().lower() in ("auto", "full"):
        if bf16.strip().lower() == "auto":
            work.carry("bf16", "train.precision", "auto")
        else:
            work.change("bf16", "train.precision", "bf16", "Held-out rows are measured in the same precision.")
    for key, value in (
        ("bf16", "bf16"),
        ("bfloat16", "bf16"),
        ("fp16", "fp16"),
        ("float16", "fp16"),
        ("float32", "fp32"),
    ):
        if not work.has(key) or work.is_done(key):
            continue
        if not work.boolean(key):
            continue
        if "train.precision" in work.settings and work.settings["train.precision"].value not in (value, "auto"):
            work.drop(key, "Another precision is given too.")
        elif value == "fp16" and trains_weights(work):
            work.drop(key, NO_FP16_WEIGHTS)
        else:
            work.carry(key, "train.precision", value)
    keys = [
        key for key in ("bf16", "bfloat16", "fp16", "float16", "float32") if work.has(key) and not work.is_done(key)
    ]
    if keys and "train.precision" not in work.settings and "bf16" in keys:
        work.change("bf16", "train.precision", "fp32", "Neither bf16 nor fp16: Axolotl computes in 32 bits.")
    for key in keys:
        if not work.is_done(key):
            work.carry(key, None, reason="Another precision is used.")


_OFFERED: dict[str, Rule] = {
    **dict.fromkeys(("base_model", "revision_of_model", "model_revision"), Joint(_model, ("model.base",))),
    **dict.fromkeys(
        (
            *("datasets", "test_datasets", "pretraining_dataset", "chat_template", "chat_template_jinja"),
            "val_set_size",
        ),
        Joint(_data, (*DATA_OPTIONS, SPECIAL_OPTION, *HELD_OUT_OPTIONS)),
    ),
    "chat_template_kwargs": Joint(choose_variables, ("template.variables",)),
    **dict.fromkeys(
        (
            *("rl", "rl_beta", "dpo_beta", "dpo_loss_type", "orpo_alpha"),
            *("kto_desirable_weight", "kto_undesirable_weight"),
        ),
        Joint(axolotl_rl, PREFERENCE_OPTIONS),
    ),
    **dict.fromkeys(
        ("adapter", "load_in_4bit", "load_in_8bit", "gptq"),
        Joint(_method, METHOD_OPTIONS),
    ),
    **dict.fromkeys(
        ("lora_r", "lora_alpha", "lora_target_modules", "lora_target_linear", "lora_target_parameters"),
        Joint(_adapters, ("method.rank", "method.alpha", "method.target_modules", "method.target_experts")),
    ),
    "lora_dropout": Copy("method.dropout", "number", absent=0.0, why="Not given: no dropout."),
    "peft_use_dora": Copy("method.dora", "boolean"),
    "peft_use_rslora": Copy("method.rslora", "boolean"),
    "peft_init_lora_weights": Joint(_beginning, ("method.init",)),
    "loraplus_lr_ratio": LORAPLUS,
    "neftune_noise_alpha": NEFTUNE,
    "noisy_embedding_alpha": Joint(_noise, (NEFTUNE.option,)),
    "sequence_len": Copy("train.max_length", "integer", absent=512, why=f"Not given: {_TITLE} takes 512."),
    "excess_length_strategy": Choice(
        "data.overlong",
        same={"drop": "drop", "truncate": "truncate", "raise": "refuse"},
        otherwise=("drop", "It may be drop, truncate or raise: longer rows are dropped."),
        absent="drop",
        why=f"Not given: {_TITLE} drops longer rows.",
    ),
    "train_on_inputs": Joint(_supervise, ("data.supervise",)),
    **dict.fromkeys(("micro_batch_size", "gradient_accumulation_steps", "batch_size"), Joint(_batch, BATCH_OPTIONS)),
    **dict.fromkeys(("num_epochs", "max_steps"), Joint(_length_of_run, EPOCH_OPTIONS)),
    # After the rules for the length of a step and of the run.
    **dict.fromkeys(
        ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"),
        Joint(_evaluation, ("eval.every_steps",)),
    ),
    **dict.fromkeys(("early_stopping_patience", *BEST_KEYS), Joint(axolotl_stopping, STOPPING_OPTIONS)),
    **dict.fromkeys(WATCHDOG_KEYS, Joint(axolotl_watchdog, WATCHDOG_OPTIONS)),
    **dict.fromkeys(
        ("generate_samples", "num_generation_samples", "eval_table_size"), Joint(axolotl_samples, SAMPLE_OPTIONS)
    ),
    **dict.fromkeys(
        ("sample_packing", "eval_sample_packing", "batch_flattening"), Joint(axolotl_packing, PACKING_OPTIONS)
    ),
    **dict.fromkeys((*COMPILE_KEYS, COMPILE_SETTINGS), Joint(axolotl_compiling, COMPILE_OPTIONS)),
    "learning_rate": Copy("train.learning_rate", "number"),
    **dict.fromkeys(("lr_scheduler", "warmup_ratio", "warmup_steps"), Joint(_schedule, SCHEDULE_OPTIONS)),
    "optimizer": OPTIMIZERS,
    "weight_decay": Copy("train.weight_decay", "number", absent=0.0, why="Not given: no decay."),
    "max_grad_norm": Copy("train.max_grad_norm", "number", absent=1.0, why="Not given: 1."),
    **dict.fromkeys(("bf16", "fp16", "bfloat16", "float16", "float32"), Joint(_precision, ("train.precision",))),
    "seed": Copy("train.seed", "integer", absent=42, why="Not given: 42."),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_offloading"), Joint(axolotl_activations, ACTIVATION_OPTIONS)
    ),
    "deepspeed": Joint(deepspeed, DEEPSPEED_OPTIONS),
    **dict.fromkeys(AXOLOTL_FSDP, Joint(axolotl_fsdp, FSDP_OPTIONS)),
    "ddp_timeout": Joint(ddp_timeout, (TIMEOUT_OPTION,)),
    "plugins": Joint(axolotl_plugins, ("memory.liger",)),
    "liger_fused_linear_cross_entropy": LIGER,
    **dict.fromkeys(("save_steps", "saves_per_epoch", "save_strategy"), Joint(_saves, ("checkpoint.every_steps",))),
    "save_total_limit": Copy("checkpoint.keep", "integer", unset=(0,)),
    **dict.fromkeys(
        (
            *("wandb_project", "wandb_name", "wandb_mode", "use_wandb", "use_tensorboard", "use_trackio"),
            *("trackio_project_name", "trackio_run_name"),
        ),
        Joint(axolotl_trackers, TRACKING_OPTIONS),
    ),
    "gradio_temperature": Copy("chat.temperature", "number"),
    "gradio_max_new_tokens": Copy("chat.max_new_tokens", "integer"),
}


def _places(values: Mapping[str, Any]) -> Iterable[str]:
    names = [values.get("base_model"), values.get("chat_template_jinja"), *names_of(values)]
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        entries = values.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str):
                names.append(entry)
            elif isinstance(entry, dict):
                files = entry.get("data_files")
                names += [entry.get("path"), *(files if isinstance(files, list) else [files])]
    return [name for name in names if isinstance(name, str) and len(name) < 400]


AXOLOTL = Tool(
    kind="axolotl",
    title=_TITLE,
    table=table(_OFFERED, NOT_OFFERED),
    signs=(
        *("base_model", "datasets", "sequence_len", "adapter", "micro_batch_size", "num_epochs", "lora_r"),
        *("lora_target_linear", "val_set_size", "sample_packing", "wandb_project"),
    ),
    places=_places,
)
