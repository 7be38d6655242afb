"""LLaMA-Factory: its training YAML."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.config.choices import Objective, Tracker
from core.config.schema import WEIGHT_METHODS
from core.data.registries.llama_factory import read_llama_factory
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_id
from core.importers import trainer
from core.importers.data_files import (
    INSTEAD,
    PLACEHOLDER,
    Written,
    count_entries,
    every,
    per_epoch,
    put_sources,
    relative_to,
    write_dataset,
)
from core.importers.distributed import ddp_timeout, deepspeed, file_names, fsdp
from core.importers.redact import shown
from core.importers.tool import REASONS, SHARED, Joint, joint, read_tool, shared
from core.importers.translation import OFF, Translation, is_one_of
from core.models.find import hub_cache_dir

REGISTRY = "dataset_info.json"

_ONLINE, _REMOTE = "ONLINE", "REMOTE:"
#: Most registry entries checked; each check reads the whole file.
_CHECKED = 50
# Columns of a dataset without a registry entry.
_ALPACA = {"user": "instruction", "context": "input", "assistant": "output"}


def datasets(work: Translation) -> None:
    """Convert the datasets, the held-out share, and the mixing weights.

    Raises:
        UserError: If a value is of the wrong kind, or ``dataset_dir`` is not a name of the Hub.
    """
    if not work.boolean("split_special_tokens"):
        trainer.special_tokens_act(work)
    directory = work.text("dataset_dir") or "data"
    names, held = work.texts("dataset"), work.texts("eval_dataset")
    registry = _registry(work, directory)
    if names:
        put_sources(work, "dataset", "data.train", _sources(work, directory, registry, names))
    else:
        work.change("dataset", "data.train", PLACEHOLDER, "The file names no dataset: put your data.")
    if held:
        put_sources(work, "eval_dataset", "data.eval", _sources(work, directory, registry, held))
    if directory == _ONLINE and (names or held):
        work.change("dataset_dir", "data.columns", _ALPACA, "The columns of a dataset of the Hub without a registry.")
    elif registry is None:
        work.drop("dataset_dir", f"Put that {REGISTRY} into a directory, name it here, and import again.")
    elif work.has("dataset_dir"):
        work.note_change("dataset_dir", "data.train", f"The directory of {REGISTRY}, which data.train names.")
    trainer.held_out(work, "val_size", has_rows=bool(held))
    _mix(work)


def _registry(work: Translation, directory: str) -> Path | None:
    """Path of the registry; None without one, or if it is not downloaded."""
    if directory == _ONLINE:
        return None
    if not directory.startswith(_REMOTE):
        return work.places.locate(directory) / REGISTRY
    repository = directory.removeprefix(_REMOTE)
    if not is_hub_id(repository):
        work.refuse("dataset_dir", f"names no repository of the Hub: {shown('dataset_dir', repository)}")
    # LLaMA-Factory downloads it to here.
    found = hub_cache_dir().glob(f"datasets--{repository.replace('/', '--')}/snapshots/*/{REGISTRY}")
    return max(found, key=lambda path: path.lstat().st_mtime, default=None)


def _sources(work: Translation, directory: str, registry: Path | None, names: list[str]) -> list[Written]:
    if directory == _ONLINE:
        return [write_dataset(work, name) for name in names]
    if registry is None:
        where = shown("dataset_dir", directory.removeprefix(_REMOTE), 120)
        note = f"An entry of a {REGISTRY} of the Hub, in {where}, which is not here."
        return [Written(name, note, False) for name in names]
    return [_source(work, registry, name, is_checked=place < _CHECKED) for place, name in enumerate(names)]


def _source(work: Translation, registry: Path, name: str, *, is_checked: bool) -> Written:
    """Entry of the registry, as ``dataset_info.json#name``; checked if the registry exists."""
    text = work.places.write(registry, f"#{name}")
    if not registry.is_file():
        return Written(text, f"There is no {shown('dataset_dir', str(registry), 120)}.", False)
    if not is_checked:
        return Written(text, "", True)
    note = f"An entry of {REGISTRY}. {relative_to(work)}"
    try:
        source = read_llama_factory(registry, name)
    except NotFetchedError as error:
        return Written(text, note, True, (str(error.entry),))
    except UserError as error:
        return Written(text, str(error), False)
    if not source.path.exists():
        return Written(text, f"The file of {shown('dataset', name, 60)} is not there: {source.path}.", False)
    if source.columns is not None and source.columns.media:
        media = ", ".join(shown("columns", column, 40) for column in source.columns.media)
        note = f"{note} Only text is read: rows with anything in {media} are not used."
    return Written(text, note, True)


def _mix(work: Translation) -> None:
    """Convert the mixing weights of the entries.

    ``max_samples`` takes that many rows of each entry; ``interleave_under`` draws from all until the first is used up,
    ``interleave_over`` until all are.
    """
    most = work.integer("max_samples")
    strategy = str(work.values.get("mix_strategy", "concat")).strip().lower()
    raw = work.values.get("interleave_probs")
    parts = raw.split(",") if isinstance(raw, str) else raw if isinstance(raw, list) else []
    shares = [share for part in parts if (share := _as_share(part)) is not None]
    if strategy == "concat":
        work.keep("mix_strategy")
        work.drop("interleave_probs", "It counts only with mix_strategy: interleave_under or interleave_over.")
    counts = count_entries(work)
    if counts is None or not all(counts) or not work.has("dataset"):
        for key in ("max_samples", "mix_strategy", "interleave_probs"):
            work.drop(key, "All rows are used: their number is not known yet. Set data.weights.")
        return
    taken = [min(count, most) if most and most > 0 else count for count in counts]
    if strategy in ("interleave_under", "interleave_over"):
        wanted = shares or [1 / len(counts)] * len(counts)
        if len(wanted) != len(counts):
            return
        pick = min if strategy == "interleave_under" else max
        drawn = pick(rows / share for rows, share in zip(taken, wanted, strict=True))
        _put_weights(work, "mix_strategy", counts, [max(round(drawn * share), 1) for share in wanted])
        for key in ("interleave_probs", "max_samples"):
            if work.has(key):
                work.note_change(key, "data.weights", "See mix_strategy.")
        return
    for key in ("mix_strategy", "interleave_probs"):
        work.drop(key, "Each row is used once in an epoch; data.weights sets how often those of an entry are.")
    if taken == counts:
        work.keep("max_samples", reason="No entry has more.")
    else:
        _put_weights(work, "max_samples", counts, taken)


def _put_weights(work: Translation, key: str, counts: list[int], taken: list[int]) -> None:
    """Set ``data.weights`` to use the given number of rows of each entry."""
    # Enough digits for exactly that number of rows.
    weights = [round(rows / count, len(str(count)) + 1) for rows, count in zip(taken, counts, strict=True)]
    few = ", ".join(f"{rows} of {count}" for rows, count in zip(taken[:4], counts, strict=False))
    more = ", …" if len(taken) > 4 else ""
    work.change(key, "data.weights", weights, f"{few}{more} rows in an epoch; train.seed decides which.")


def _as_share(part: object) -> float | None:
    try:
        number = float(str(part))
    except ValueError:
        return None
    return number if 1e-6 <= number <= 1 else None


_TITLE = "LLaMA-Factory"
_TRACKERS: dict[str, Tracker] = {"wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio"}


def _stage(work: Translation) -> None:
    """Convert preferences: ``stage`` is the objective, ``pref_loss`` the loss of pairs."""
    stage, kind = work.word("stage", "sft"), work.word("pref_loss", "sigmoid")
    objectives: dict[str, Objective] = {"dpo": "orpo" if kind == "orpo" else "dpo", "kto": "kto"}
    objective = objectives.get(stage, "sft")
    if stage in objectives:
        work.carry("stage", "train.objective", objective)
    elif stage in ("sft", "pt"):
        work.keep("stage")
    work.drop("stage", REASONS["preferences"])
    trainer.leave_uncompared(work, objective, "train_on_prompt")
    if objective == "dpo":
        trainer.pair_loss(work, "pref_loss", kind)
    elif objective == "orpo":
        work.carry("pref_loss", "train.objective")
    work.keep("pref_loss")
    trainer.preference_number(work, "pref_beta", "train.beta", counts=objective != "sft")
    trainer.preference_number(work, "kto_chosen_weight", "train.desirable_weight", counts=objective == "kto")
    trainer.preference_number(work, "kto_rejected_weight", "train.undesirable_weight", counts=objective == "kto")


def _thinking(work: Translation) -> None:
    """Convert ``enable_thinking``; true is the default of templates with reasoning."""
    key = "enable_thinking"
    if work.boolean(key) or work.values.get("template") in (*SHARED["template"].same, *SHARED["template"].near):
        work.keep(key)
    elif work.has(key):
        reason = "Only where the model's chat template reads it; else remove it."
        work.change(key, "template.variables", {key: False}, reason)


def _method(work: Translation) -> None:
    """Convert the method; QLoRA is LoRA on a quantized base."""
    kind, bits = work.word("finetuning_type", "lora"), work.integer("quantization_bit")
    name = "qlora" if bits and kind == "lora" else kind if kind in WEIGHT_METHODS else "lora"
    if kind == "lora":
        work.carry("finetuning_type", "method.name")
    elif kind in WEIGHT_METHODS:
        work.carry("finetuning_type", "method.name", name)
        trainer.train_weights(work)
    else:
        noun = "OFT" if kind == "oft" else "This method"
        work.drop("finetuning_type", f"{noun} is not available: adapters on a 16-bit base.", "method.name", name)
    trained_layers(work, is_freeze=kind == "freeze")
    if bits is None and kind == "lora":
        work.change("quantization_bit", "method.name", name, "No quantization_bit: the base is not quantized.")
    elif kind != "lora":
        work.drop("quantization_bit", trainer.ADAPTERS_ONLY)
    elif bits == 4:
        work.carry("quantization_bit", "method.name", name)
    elif bits:
        reason = f"{bits} bits are not available: 4; lora keeps 16."
        work.drop("quantization_bit", reason, "method.name", name)
    if work.word("quantization_method", "bnb") in ("bnb", "bitsandbytes") or not bits:
        work.keep("quantization_method")
    work.drop("quantization_method", "Quantized by bitsandbytes (NF4) instead.")


def trained_layers(work: Translation, table: str = "", *, is_freeze: bool) -> None:
    """Convert trainable layers: a positive number counts from the end, a negative number from the start.

    Args:
        work: The translation.
        table: Prefix of the keys.
        is_freeze: True if layers are trained.
    """
    number, names = f"{table}freeze_trainable_layers", f"{table}freeze_trainable_modules"
    layers, modules = work.integer(number), work.word(names)
    if layers is not None and is_freeze:
        if layers < 0:
            work.put("method.trainable_end", "first")
        work.carry(number, "method.trainable_layers", abs(layers))
    work.keep(number)
    if modules == "all" or not is_freeze:
        work.keep(names)
    work.drop(names, "Whole layers are trained, not some of their modules.")


def _adapters(work: Translation) -> None:
    """Convert adapters; ``lora_alpha`` defaults to twice the rank."""
    if work.value("method.name") in WEIGHT_METHODS:
        for key in ("lora_rank", "lora_alpha", "lora_target"):
            work.drop(key, trainer.ADAPTERS_ONLY)
        return
    rank = work.integer("lora_rank")
    work.carry("lora_rank", "method.rank", rank)
    work.change("lora_rank", "method.rank", 8, f"Not given: {_TITLE}'s default is 8.")
    if alpha := work.number("lora_alpha"):
        work.carry("lora_alpha", "method.alpha", alpha)
    else:
        twice = float(2 * (8 if rank is None else rank))
        work.change("lora_alpha", "method.alpha", twice, f"Not given: {_TITLE}'s default is twice the rank.")
    if names := work.texts("lora_target"):
        trainer.target_modules(work, "lora_target", names)


def _supervise(work: Translation) -> None:
    """Convert supervised turns; ``mask_history`` leaves out all but the last."""
    whole, last = work.boolean("train_on_prompt"), work.boolean("mask_history")
    if whole and last:
        work.refuse("mask_history", "does not go with train_on_prompt", f"Remove one; {_TITLE} refuses both.")
    if whole:
        work.carry("train_on_prompt", "data.supervise", "all")
    if last:
        work.carry("mask_history", "data.supervise", "last")
    work.keep("train_on_prompt", "mask_history")


def _batch(work: Translation) -> None:
    keys = ("deepspeed", "fsdp", "ray_num_workers", "tensor_model_parallel_size")
    several = any(work.has(key) and not work.is_(key, False, "", 0, 1) for key in keys)
    remark = " With several, multiply by their number." if several else ""
    packs = work.boolean("packing") or work.boolean("neat_packing")
    if packs and is_one_of(work.values.get("stage", "sft"), ("sft",)):
        remark += trainer.PACKED_ROWS
    trainer.joined_batch(work, "per_device_train_batch_size", "gradient_accumulation_steps", (8, 1), remark)


def _epochs(work: Translation) -> float:
    return work.number("num_train_epochs") or 3.0


def _evaluation(work: Translation) -> None:
    """Convert evaluation; ``eval_steps`` applies only with ``eval_strategy: steps``."""
    has_rows, steps_key, option = trainer.is_measured(work), "eval_steps", "eval.every_steps"
    if work.boolean("eval_on_start") and has_rows:
        work.carry("eval_on_start", "eval.baseline", True)
    elif work.boolean("eval_on_start"):
        work.drop("eval_on_start", trainer.NOTHING_HELD_OUT)
    work.keep("eval_on_start")
    strategy = "no"
    for key in [key for key in ("eval_strategy", "evaluation_strategy") if work.has(key)]:
        found = work.values[key]
        strategy = "no" if found is False else str(found).strip().lower()
        if not has_rows and strategy != "no":
            work.drop(key, trainer.NOTHING_HELD_OUT)
        elif strategy == "epoch":
            per_epoch(work, key, option, 1)
        elif strategy in ("no", "steps"):
            work.keep(key)
        work.drop(key, f"It may be no, steps or epoch: {INSTEAD[option]}")
    if not has_rows:
        work.drop(steps_key, trainer.NOTHING_HELD_OUT)
    elif strategy != "steps":
        reason = f"It counts only with eval_strategy: steps, and the strategy is {shown('', strategy)}."
        work.drop(steps_key, reason)
    elif work.has(steps_key):
        every(work, steps_key, option, _epochs(work))
    else:
        steps = work.values.get("logging_steps", 500)
        if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
            work.change(steps_key, option, steps, f"Not given: {_TITLE}'s default is logging_steps.")


def _stopping(work: Translation) -> None:
    """Convert early stopping; ``early_stopping_steps`` counts evaluations despite its name."""
    trainer.best_checkpoint(work, stops_early=trainer.early_stopping(work, "early_stopping_steps"))


def _answers(work: Translation) -> None:
    """Convert ``predict_with_generate``, which answers held-out questions and computes BLEU and ROUGE."""
    key = "predict_with_generate"
    if not work.boolean(key):
        work.keep(key)
    elif not trainer.is_measured(work):
        work.drop(key, trainer.NOTHING_HELD_OUT)
    elif work.word("stage", "sft") != "sft":
        work.drop(key, f"It does not go with another stage than sft, in {_TITLE} neither.")
    else:
        work.change(key, "eval.exact_match", True, "Answers are compared exactly, not by BLEU and ROUGE.")


def _packing(work: Translation) -> None:
    """Convert packing; with ``neat_packing`` the rows of a sequence do not attend to each other."""
    stage, neat, plain = work.word("stage", "sft"), work.boolean("neat_packing"), work.boolean("packing")
    if stage in ("sft", "pt"):
        if neat:
            trainer.pack(work, "neat_packing", trainer.FILLED)
        elif plain:
            trainer.pack(work, "packing", trainer.FILLED)
    work.keep("neat_packing", "packing")


def _compiling(work: Translation) -> None:
    """Convert compilation; a backend or a mode turns it on too."""
    keys = ("torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo")
    trainer.compile_layers(work, next((key for key in keys if work.has(key) and not work.is_(key, *OFF, "false")), ""))


def _adafactor(work: Translation) -> None:
    """Convert ``adafactor``, an old key that overrides ``optim``."""
    if work.boolean("adafactor"):
        work.carry("adafactor", "train.optimizer", "adafactor")
        work.drop("optim", "adafactor is given too, and counts.")
    work.keep("adafactor")


def _precision(work: Translation) -> None:
    """Convert the precision; ``pure_bf16`` puts adapters in bf16 there as well."""
    for key, value in {"pure_bf16": "bf16", "bf16": "bf16", "fp16": "fp16"}.items():
        if not work.boolean(key):
            work.keep(key)
        elif "train.precision" in work.settings:
            work.drop(key, "Another precision is given too.")
        else:
            is_pure = key == "pure_bf16" and work.value("method.name") not in WEIGHT_METHODS
            trainer.precision(work, key, value, "Adapters stay in 32 bits; the arithmetic is bf16." if is_pure else "")


def _activations(work: Translation) -> None:
    """Convert gradient checkpointing; ``use_unsloth_gc`` offloads its inputs."""
    disabled = "disable_gradient_checkpointing"
    is_disabled = work.is_(disabled, True, "true")
    for key in ("use_unsloth_gc", "gradient_checkpointing", "activation_checkpointing"):
        if not work.boolean(key):
            work.keep(key)
        elif is_disabled:
            work.drop(key, f"{disabled} is given too, and counts.")
        elif key == "use_unsloth_gc":
            trainer.offload_activations(work, key)
        else:
            work.carry(key, "memory.gradient_checkpointing", "on")
    SHARED["no_checkpointing"].apply(work, disabled)


def _saves(work: Translation) -> None:
    trainer.save_strategy(work)
    every(work, "save_steps", "checkpoint.every_steps", _epochs(work))


def _device(work: Translation) -> None:
    for key in ("use_cpu", "no_cuda"):
        if work.boolean(key):
            work.carry(key, "hardware.device", "cpu")
        work.keep(key)


def _trackers(work: Translation) -> None:
    """Convert trackers; ``all`` in ``report_to`` means all installed trackers."""
    key, option = "report_to", "tracking.tools"
    names = [name.strip().lower() for name in work.texts(key) or []]
    tools = [_TRACKERS[name] for name in names if name in _TRACKERS]
    others = [name for name in names if name not in _TRACKERS and name not in ("none", "")]
    if "all" in others:
        work.drop(key, f"Name the trackers that you want in {option}.")
        tools = []
    elif others and tools:
        work.change(key, option, sorted(set(tools)), REASONS["tracking"])
    elif others:
        work.drop(key, REASONS["tracking"])
    elif tools:
        work.carry(key, option)
    work.keep(key)
    work.carry("run_name", "tracking.name", work.text("run_name"))
    work.carry("project", "tracking.project", work.text("project"))
    trainer.put_trackers(work, tools)


def _chat(work: Translation) -> None:
    """Convert ``do_sample``; false is greedy decoding, regardless of ``temperature``."""
    key, option = "do_sample", "chat.temperature"
    sample = work.boolean(key)
    if sample and not work.has("temperature"):
        work.change(key, option, 0.95, f"Without temperature, {_TITLE} takes 0.95.")
    elif sample is False:
        work.carry(key, option, 0.0)
        work.drop("temperature", "do_sample: false always takes the likeliest token.")
    work.keep(key)


_CARRIED: dict[str, Joint] = {
    **shared(trainer.model_base, "model_name_or_path model_revision"),
    **joint(datasets, "dataset eval_dataset dataset_dir val_size mix_strategy interleave_probs max_samples"),
    **joint(_stage, "stage pref_loss pref_beta kto_chosen_weight kto_rejected_weight"),
    "enable_thinking": _thinking,
    **joint(
        _method, "finetuning_type freeze_trainable_layers freeze_trainable_modules quantization_bit quantization_method"
    ),
    **joint(_adapters, "lora_rank lora_alpha lora_target"),
    **shared(trainer.cut_length, "cutoff_len", 2048),
    **joint(_supervise, "train_on_prompt mask_history"),
    **joint(_batch, "per_device_train_batch_size gradient_accumulation_steps"),
    **shared(trainer.epochs, "num_train_epochs max_steps", 3.0),
    # After the rules for the length of a step and of the run.
    **joint(_evaluation, "eval_strategy evaluation_strategy eval_steps eval_on_start"),
    **joint(_stopping, f"early_stopping_steps {trainer.BEST_KEYS}"),
    "predict_with_generate": _answers,
    **joint(_packing, "packing neat_packing"),
    **joint(_compiling, "torch_compile torch_compile_backend torch_compile_mode torchdynamo"),
    **shared(trainer.schedule, "lr_scheduler_type warmup_ratio warmup_steps", "linear", 0.0),
    "adafactor": _adafactor,
    **joint(_precision, "pure_bf16 bf16 fp16"),
    **joint(
        _activations, "disable_gradient_checkpointing use_unsloth_gc gradient_checkpointing activation_checkpointing"
    ),
    "deepspeed": deepspeed,
    **shared(fsdp, "fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap"),
    "ddp_timeout": ddp_timeout,
    **joint(_saves, "save_steps save_strategy"),
    **joint(_device, "use_cpu no_cuda"),
    **joint(_trackers, "report_to run_name project"),
    "do_sample": _chat,
}


def _places(values: Mapping[str, Any]) -> Iterable[Any]:
    directory = values.get("dataset_dir", "data")
    registry = os.path.join(directory, REGISTRY) if isinstance(directory, str) else None
    return [registry, values.get("model_name_or_path"), *file_names(values)]


LLAMA_FACTORY = read_tool("llama-factory", _CARRIED, _places)
