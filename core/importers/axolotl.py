"""Axolotl: the training YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.config.choices import Objective, Tracker
from core.config.schema import MethodSection
from core.importers import trainer
from core.importers.axolotl_data import datasets, named_files
from core.importers.data_files import INSTEAD, every, per_epoch
from core.importers.distributed import ddp_timeout, deepspeed, file_names, fsdp
from core.importers.tool import REASONS, SHARED, Joint, joint, read_tool, shared
from core.importers.translation import OFF, Translation

_TITLE = "Axolotl"
#: Most samples at an evaluation.
_MOST_SAMPLES = 100


def _data(work: Translation) -> None:
    trainer.special_tokens_act(work)
    trainer.held_out(work, "val_set_size", has_rows=datasets(work))


def _template_variables(work: Translation) -> None:
    """Convert variables of the chat template; lists and tables cannot be set here."""
    key = "chat_template_kwargs"
    given, name = work.values.get(key), work.value("template.name")
    if not isinstance(given, dict):
        work.drop(key, "It is not a table of variables.")
        return
    plain = {name: value for name, value in given.items() if isinstance(value, (bool, int, float, str))}
    if not plain:
        work.keep(key)
    elif name is not None:
        work.drop(key, f"The template {name} has no variables.")
    else:
        left = ", ".join(str(name) for name in given if name not in plain)
        differs = f"Without {left}: only texts, numbers, true and false can be set."
        work.take(key, "template.variables", plain, "" if plain == given else differs)


def _preferences(work: Translation) -> None:
    """Convert preferences: ``rl`` is the objective, and each objective has its own key for beta."""
    kind = work.word("rl")
    objectives: dict[str, Objective] = {"dpo": "dpo", "ipo": "dpo", "orpo": "orpo", "kto": "kto"}
    objective = objectives.get(kind)
    if objective is not None and "data.format" in work.settings:
        rows = work.value("data.format")
        work.drop("rl", f"Rows of the format {rows} have no comparisons: answers are learned.")
        objective, kind = None, ""
    elif objective is not None:
        work.carry("rl", "train.objective", objective)
    else:
        work.drop("rl", REASONS["preferences"])
    trainer.leave_uncompared(work, objective or "sft", "train_on_inputs")
    if objective in ("dpo", "kto") and work.values.get("peft_init_lora_weights") == "loftq":
        work.drop("peft_init_lora_weights", "Answers are compared with the base: adapters start without effect.")
    if kind == "ipo":
        work.put("train.dpo_loss", "ipo")
    losses = work.texts("dpo_loss_type") or []
    if kind == "dpo":
        trainer.pair_loss(work, "dpo_loss_type", losses[0].strip().lower() if len(losses) == 1 else "")
    work.keep("dpo_loss_type")
    trainer.preference_number(work, "dpo_beta", "train.beta", counts=kind in ("dpo", "ipo"))
    trainer.preference_number(work, "orpo_alpha", "train.beta", counts=kind == "orpo")
    trainer.preference_number(work, "rl_beta", "train.beta", counts=objective is not None)
    trainer.preference_number(work, "kto_desirable_weight", "train.desirable_weight", counts=kind == "kto")
    trainer.preference_number(work, "kto_undesirable_weight", "train.undesirable_weight", counts=kind == "kto")


def _method(work: Translation) -> None:
    """Convert the method; combinations that Axolotl refuses are refused here too."""
    adapter = work.word("adapter")
    in_4bit, in_8bit, gptq = (work.boolean(key) for key in ("load_in_4bit", "load_in_8bit", "gptq"))
    if not adapter:
        if in_4bit or in_8bit:
            key = "load_in_4bit" if in_4bit else "load_in_8bit"
            work.refuse(key, f"needs an adapter, in {_TITLE} too", "Write adapter: qlora, or remove it.")
        work.change("adapter", "method.name", "full", "Without an adapter all weights are trained.")
        trainer.train_weights(work)
    elif adapter == "qlora":
        if in_8bit or gptq:
            work.refuse("load_in_8bit" if in_8bit else "gptq", "does not go with adapter: qlora", "Remove it.")
        if not in_4bit:
            work.refuse("adapter", f"is qlora, which needs load_in_4bit: true in {_TITLE}", "Add it, or write lora.")
        work.carry("adapter", "method.name", "qlora")
        work.carry("load_in_4bit", "method.name")
    elif adapter == "lora":
        work.carry("adapter", "method.name", None if in_8bit else "lora")
    else:
        work.drop("adapter", "This adapter is not available: LoRA on a 16-bit base.", "method.name", "lora")
    if in_8bit:
        reason = "8 bits are not available: 4, with less memory; lora keeps 16."
        work.drop("load_in_8bit", reason, "method.name", "qlora")
    if in_4bit:
        work.drop("load_in_4bit", f"{_TITLE} quantizes to 4 bits only with adapter: qlora.")
    if gptq:
        reason = "A GPTQ model is decoded to 16 bits on loading; method.name = qlora needs less memory."
        work.note_change("gptq", "model.base", reason)
    work.keep("load_in_4bit", "load_in_8bit", "gptq")


def _adapters(work: Translation) -> None:
    """Convert adapters; rank and alpha have no defaults in Axolotl."""
    ours, is_lora, targets = MethodSection(), work.has("adapter"), "lora_target_modules"
    work.carry("lora_r", "method.rank", work.integer("lora_r"))
    work.carry("lora_alpha", "method.alpha", work.number("lora_alpha"))
    if is_lora and work.value("method.rank") and not work.has("lora_alpha"):
        twice = float(2 * work.value("method.rank"))
        work.change("lora_alpha", "method.alpha", twice, f"Not given, and {_TITLE} has no default: twice the rank.")
    if is_lora:
        for key, option, default in (("lora_r", "method.rank", ours.rank), ("lora_alpha", "method.alpha", ours.alpha)):
            work.change(key, option, default, f"Not given, though {_TITLE} requires it: the default here.")
    _expert_adapters(work)
    linear, raw = work.boolean("lora_target_linear"), work.values.get(targets)
    names = [raw.strip()] if isinstance(raw, str) and raw.strip() else work.texts(targets) or []
    if linear:
        work.carry("lora_target_linear", "method.target_modules", "all-linear")
        if names:
            work.drop(targets, "All linear layers get adapters; others cannot be named beside them.")
    elif names:
        trainer.target_modules(work, targets, names, is_text=isinstance(raw, str))
    elif is_lora:
        work.change(targets, "method.target_modules", "all-linear", "No layers are named: all linear ones.")
    if linear is False:
        work.keep("lora_target_linear")


def _expert_adapters(work: Translation) -> None:
    """Convert adapters on parameters: only experts are supported, always with both matrices."""
    key, option = "lora_target_parameters", "method.target_experts"
    raw = work.values.get(key)
    names = [raw] if isinstance(raw, str) else work.texts(key) or []
    if not all("experts." in name and name.endswith("_proj") for name in names):
        work.drop(key, "Adapters on parameters are available for the matrices of experts only.")
    elif names:
        is_both = any("down" in name for name in names) and any("up" in name for name in names)
        work.take(key, option, "on", "" if is_both else "Experts have adapters on both of their matrices.")


def _start(work: Translation) -> None:
    """Convert the initialization; LoftQ compensates for 4-bit quantization and is ignored on an unquantized base."""
    key = "peft_init_lora_weights"
    if work.values.get(key) == "loftq" and work.value("method.name") != "qlora":
        work.drop(key, "It compensates for rounding to 4 bits, and nothing is rounded: adapters start without effect.")
    SHARED["start"].apply(work, key)


def _noise(work: Translation) -> None:
    """Convert the old key of NEFTune; Axolotl refuses it beside the new key."""
    old, new = "noisy_embedding_alpha", "neftune_noise_alpha"
    if work.has(old) and work.has(new):
        work.refuse(old, f"is the old name of {new}, which is given too", "Remove it.")
    SHARED["neftune"].apply(work, old)


def _supervise(work: Translation) -> None:
    if work.boolean("train_on_inputs"):
        work.carry("train_on_inputs", "data.supervise", "all")
    work.keep("train_on_inputs")


def _batch(work: Translation) -> None:
    micro, accumulate = "micro_batch_size", "gradient_accumulation_steps"
    size, times, total = (work.integer(key) for key in (micro, accumulate, "batch_size"))
    if total is not None and times is None and total >= (size or 1) > 0:
        # As in Axolotl.
        work.values[accumulate] = total // (size or 1)
        work.carry("batch_size", "train.batch_size")
    work.drop("batch_size", f"{accumulate} is given too, and counts.")
    several = any(work.has(key) for key in ("deepspeed", "fsdp", "fsdp_config", "dp_shard_size", "use_ray"))
    remark = " With several, multiply by their number." if several else ""
    trainer.joined_batch(
        work, micro, accumulate, (1, 1), remark + (trainer.PACKED_ROWS if work.is_("sample_packing", True) else "")
    )


def _epochs(work: Translation) -> float:
    return work.number("num_epochs") or 1.0


def _evaluation(work: Translation) -> None:
    """Convert evaluation; Axolotl turns ``evals_per_epoch`` into a share of all steps."""
    has_rows, option = trainer.is_measured(work), "eval.every_steps"
    times = work.number("evals_per_epoch")
    if times is not None and times > 0 and has_rows:
        per_epoch(work, "evals_per_epoch", option, times, _epochs(work))
    elif times is not None and times > 0:
        work.drop("evals_per_epoch", trainer.NOTHING_HELD_OUT)
    work.keep("evals_per_epoch")
    for key in ("eval_strategy", "evaluation_strategy"):
        if work.is_(key, "epoch") and has_rows:
            if option in work.settings or work.has("eval_steps"):
                work.drop(key, "Steps are given too, and count.")
            else:
                per_epoch(work, key, option, 1)
        elif work.is_(key, 0, False, "no", "steps"):
            work.keep(key)
        work.drop(key, f"It may be no, steps or epoch: {INSTEAD[option]}" if has_rows else trainer.NOTHING_HELD_OUT)
    if has_rows:
        every(work, "eval_steps", option, _epochs(work))
    work.drop("eval_steps", trainer.NOTHING_HELD_OUT)


def _stopping(work: Translation) -> None:
    """Convert early stopping, with which Axolotl always keeps the best checkpoint."""
    key, best = "early_stopping_patience", "load_best_model_at_end"
    stops_early = not work.is_(key, 0) and trainer.early_stopping(work, key)
    work.keep(key)
    if stops_early and not work.boolean(best):
        work.change(best, "checkpoint.final", "best", f"With {key}, {_TITLE} takes the best step.")
    trainer.best_checkpoint(work, stops_early=stops_early)


def _watchdog(work: Translation) -> None:
    """Convert the loss watchdog, which stops a run after consecutive steps (default: three) above a loss limit."""
    threshold, patience = "loss_watchdog_threshold", "loss_watchdog_patience"
    limit, steps = work.number(threshold), work.integer(patience)
    if limit is None:
        work.keep(patience)
        return
    work.change(threshold, "train.loss_limit", limit, "The run stops at its last good checkpoint.")
    if "train.loss_limit" in work.settings:
        work.put("train.on_loss_spike", "stop", f"As {threshold} asks.")
        work.put("train.loss_spike", 0.0, f"{threshold} is the only limit.")
    work.carry(patience, "train.loss_spike_patience", steps)


def _samples(work: Translation) -> None:
    """Convert samples: ``generate_samples`` continues halves of rows, ``eval_table_size`` answers held-out rows."""
    key, count, size, option = "generate_samples", "num_generation_samples", "eval_table_size", "eval.samples"
    wanted, number, has_rows = work.boolean(key), work.integer(count), trainer.is_measured(work)
    answers = work.integer(size) or 0
    if wanted and has_rows:
        reason = "Whole questions are answered, with the likeliest tokens, up to the length of the rows' answers."
        work.change(key, option, 3 if number is None else number, reason)
    elif wanted:
        work.drop(key, f"{trainer.NOTHING_HELD_OUT} Set eval.prompts to have prompts of your own answered.")
    elif has_rows and not answers:
        work.carry(key, option, 0)
    if wanted and option in work.settings:
        work.carry(count, option)
    elif wanted:
        work.drop(count, "It must be from 0 to 100." if has_rows else trainer.NOTHING_HELD_OUT)
    if answers > 0 and not has_rows:
        work.drop(size, trainer.NOTHING_HELD_OUT)
    elif answers > 0 and option not in work.settings:
        reason = "The answers to that many held-out questions are kept with the run, and shown in the app."
        work.change(size, option, min(answers, _MOST_SAMPLES), reason)
    work.keep(key, count, size)


def _packing(work: Translation) -> None:
    """Convert packing: ``sample_packing`` fills sequences, ``batch_flattening`` packs a micro-batch, as here."""
    fills, lays = work.boolean("sample_packing"), work.is_("batch_flattening", True, "true", "auto")
    is_compared = bool(work.word("rl"))
    if fills and is_compared:
        work.drop("sample_packing", f"It does not go with rl, in {_TITLE} neither: rows are not packed.")
    elif fills:
        trainer.pack(work, "sample_packing", trainer.FILLED)
    if lays and (fills or is_compared):
        work.drop("batch_flattening", f"It goes with neither sample_packing nor rl, in {_TITLE} neither.")
    elif lays:
        trainer.pack(work, "batch_flattening")
    work.keep("sample_packing", "batch_flattening", "eval_sample_packing")


def _compiling(work: Translation) -> None:
    trainer.compile_layers(work, "torch_compile" if work.is_("torch_compile", True, "true", "auto") else "")


def _precision(work: Translation) -> None:
    keys = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "float32": "fp32"}
    if work.is_("bf16", "auto"):
        work.carry("bf16", "train.precision", "auto")
    elif work.is_("bf16", "full"):
        work.change("bf16", "train.precision", "bf16", "Evaluation has the same precision.")
    for key, value in keys.items():
        if not work.is_done(key) and work.boolean(key):
            trainer.precision(work, key, value)
    if work.has("bf16") and "train.precision" not in work.settings:
        work.change("bf16", "train.precision", "fp32", f"Neither bf16 nor fp16: {_TITLE} computes in 32 bits.")
    work.keep(*keys)


def _activations(work: Translation) -> None:
    """Convert ``activation_offloading``, and the values of ``gradient_checkpointing`` that mean the same."""
    key, checkpointing = "activation_offloading", "gradient_checkpointing"
    no_disk = "The inputs of the layers are kept in host memory, not on a disk."
    if work.is_(key, True, "true", "hidden_states"):
        trainer.offload_activations(work, key)
    elif work.is_(key, "legacy"):
        # It offloads every saved activation, recomputed or not.
        trainer.offload_activations(
            work, key, "Activations are recomputed, and the inputs of the layers kept in host memory."
        )
    elif work.is_(key, "disk"):
        trainer.offload_activations(work, key, no_disk)
    elif work.is_(key, *OFF, "false"):
        work.keep(key)
    work.drop(key, "No such way of offloading: it is decided by the memory plan.")
    if work.is_(checkpointing, "offload", "unsloth", "offload_disk"):
        trainer.offload_activations(work, checkpointing, no_disk if work.is_(checkpointing, "offload_disk") else "")
    elif "memory.activation_offload" in work.settings and work.is_(checkpointing, False, "false"):
        work.drop(checkpointing, f"{key} recomputes activations here.")
    SHARED["checkpointing"].apply(work, checkpointing)


def _plugins(work: Translation) -> None:
    """Convert plugins: the loss of the Liger plugin is supported, other plugins are not loaded."""
    key = "plugins"
    if work.is_off(key):
        work.keep(key)
        return
    names = work.texts(key) or []
    of_liger = [name for name in names if name.rpartition(".")[2] == "LigerPlugin"]
    if of_liger and len(of_liger) == len(names):
        work.change(key, "memory.liger", "auto", SHARED["liger"].near["true"][1])
    work.drop(key, REASONS["kernels"], "memory.liger" if of_liger else None, "auto")


def _saves(work: Translation) -> None:
    key, option = "saves_per_epoch", "checkpoint.every_steps"
    times = work.number(key)
    if times is not None and times > 0:
        per_epoch(work, key, option, times, _epochs(work))
    work.keep(key)
    trainer.save_strategy(work)
    every(work, "save_steps", option, _epochs(work))


def _trackers(work: Translation) -> None:
    """Convert trackers; a project turns W&B on, and without a mode it is online there, but offline here."""
    project, is_wanted, mode = work.text("wandb_project"), work.boolean("use_wandb"), work.word("wandb_mode")
    tools: list[Tracker] = ["wandb"] if (project or is_wanted) and mode != "disabled" else []
    offline = "Runs stay in their directory unless tracking.wandb_mode is online."
    if is_wanted and tools:
        work.carry("use_wandb", "tracking.tools")
    work.keep("use_wandb")
    work.carry("wandb_project", "tracking.project", project)
    work.carry("wandb_name", "tracking.name", work.text("wandb_name"))
    if mode in ("online", "offline"):
        work.carry("wandb_mode", "tracking.wandb_mode", mode)
    elif mode in ("disabled", "dryrun"):
        work.keep("wandb_mode")
    elif mode:
        work.drop("wandb_mode", f"It may be online, offline or disabled. {offline}")
    elif tools:
        work.change("wandb_mode", "tracking.wandb_mode", "offline", offline)
    tools += trainer.switched_trackers(work, {"use_tensorboard": "tensorboard", "use_trackio": "trackio"})
    for key, option in (("trackio_project_name", "tracking.project"), ("trackio_run_name", "tracking.name")):
        if work.value(option) not in (None, work.text(key)):
            work.drop(key, "All trackers have the same project and name here; W&B's is taken.")
        work.carry(key, option, work.text(key))
    trainer.put_trackers(work, tools)


_CARRIED: dict[str, Joint] = {
    **shared(trainer.model_base, "base_model revision_of_model model_revision"),
    **joint(_data, "datasets test_datasets pretraining_dataset chat_template chat_template_jinja val_set_size"),
    "chat_template_kwargs": _template_variables,
    **joint(_preferences, "rl rl_beta dpo_beta dpo_loss_type orpo_alpha kto_desirable_weight kto_undesirable_weight"),
    **joint(_method, "adapter load_in_4bit load_in_8bit gptq"),
    **joint(_adapters, "lora_r lora_alpha lora_target_modules lora_target_linear lora_target_parameters"),
    "peft_init_lora_weights": _start,
    "noisy_embedding_alpha": _noise,
    "train_on_inputs": _supervise,
    **joint(_batch, "micro_batch_size gradient_accumulation_steps batch_size"),
    **shared(trainer.epochs, "num_epochs max_steps", 1.0),
    # After the rules for the length of a step and of the run.
    **joint(_evaluation, "evals_per_epoch eval_steps eval_strategy evaluation_strategy"),
    **joint(_stopping, f"early_stopping_patience {trainer.BEST_KEYS}"),
    **joint(_watchdog, "loss_watchdog_threshold loss_watchdog_patience"),
    **joint(_samples, "generate_samples num_generation_samples eval_table_size"),
    **joint(_packing, "sample_packing eval_sample_packing batch_flattening"),
    **joint(_compiling, "torch_compile torch_compile_backend torch_compile_mode torch_compile_options"),
    **shared(trainer.schedule, "lr_scheduler warmup_ratio warmup_steps", None, 0.03),
    **joint(_precision, "bf16 fp16 bfloat16 float16 float32"),
    **joint(_activations, "gradient_checkpointing activation_offloading"),
    "deepspeed": deepspeed,
    **shared(fsdp, "fsdp fsdp_config fsdp_version fsdp_final_state_dict_type"),
    "ddp_timeout": ddp_timeout,
    "plugins": _plugins,
    **joint(_saves, "save_steps saves_per_epoch save_strategy"),
    **joint(
        _trackers,
        "wandb_project wandb_name wandb_mode use_wandb use_tensorboard use_trackio trackio_project_name "
        "trackio_run_name",
    ),
}


def _places(values: Mapping[str, Any]) -> Iterable[Any]:
    data = named_files(*(values.get(key) for key in ("datasets", "test_datasets", "pretraining_dataset")))
    return [values.get("base_model"), values.get("chat_template_jinja"), *file_names(values), *data]


AXOLOTL = read_tool("axolotl", _CARRIED, _places)
