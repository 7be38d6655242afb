"""Unsloth: the settings in scripts and notebooks, as arguments of its functions and of the trainers of TRL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from core.config.choices import Objective
from core.importers import trainer, unsloth
from core.importers.axolotl_data import Dataset, named_files, read_sources, take_parts
from core.importers.data_files import PLACEHOLDER, put_sources
from core.importers.llama_factory import LLAMA_FACTORY
from core.importers.tool import REASONS, Joint, Unsupported, joint, read_tool, shared
from core.importers.translation import Translation

_PREPARED = "The script's functions are not run: rows are recognized by their columns. 'localtune-tui data' shows them."
# Rules of the transformers trainer, which are LLaMA-Factory's too.
_TRAINER = """
eval_strategy evaluation_strategy eval_steps eval_on_start load_best_model_at_end metric_for_best_model
greater_is_better save_steps save_strategy save_total_limit adafactor bf16 fp16 torch_compile torch_compile_backend
torch_compile_mode use_cpu no_cuda report_to run_name full_determinism neftune_noise_alpha max_grad_norm ddp_timeout
use_liger_kernel
"""


def _data(work: Translation) -> None:
    trainer.special_tokens_act(work)
    for key, option in (("train_dataset", "data.train"), ("eval_dataset", "data.eval")):
        raw = work.values.get(key)
        entries = [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []
        entries = [entry for entry in entries if isinstance(entry.get("path"), str) and entry["path"].strip()]
        names = [f"{key}[{number}]" for number in range(1, len(entries) + 1)]
        pairs = list(zip(names, entries, strict=True))
        work.inner |= {f"{place}.{name}": value for place, entry in pairs for name, value in entry.items()}
        found = [Dataset(place, read_sources(work, place, entry)) for place, entry in pairs]
        sources = [source for each in found for source in each.sources]
        if sources:
            put_sources(work, key, option, sources, _PREPARED if work.has("dataset.map") else "")
            take_parts(work, option, found, sources)
        work.drop(key, "It names no data that can be read here.")
        if option == "data.train" and not sources:
            work.put(option, PLACEHOLDER, "The data is not named in a call of load_dataset: put yours.")
    work.drop("dataset.map", _PREPARED)


def _model(work: Translation) -> None:
    kind = work.text("model_class") or ""
    if any(word in kind for word in ("Vision", "Sentence", "Diffusion")):
        work.drop("model_class", REASONS["text_only"])
    work.keep("model_class")


def _method(work: Translation) -> None:
    bits, targets, name = "load_in_4bit", "target_modules", "method.name"
    if work.boolean("full_finetuning"):
        work.carry("full_finetuning", name, "full")
        trainer.train_weights(work)
        for key in (bits, "load_in_8bit", "r", "lora_alpha", "lora_dropout", targets):
            work.drop(key, trainer.ADAPTERS_ONLY)
        return
    work.keep("full_finetuning")
    if work.boolean("load_in_8bit"):
        work.drop("load_in_8bit", "8 bits are not available: 4; lora keeps 16.", name, "qlora")
    elif work.boolean("load_in_16bit"):
        work.carry("load_in_16bit", name, "lora")
    else:
        unsloth.four_bits(work, bits)
    work.keep(bits, "load_in_8bit", "load_in_16bit")
    unsloth.targets(work, targets, is_text=isinstance(work.values.get(targets), str))


def _length(work: Translation) -> None:
    """Convert the maximum length; that of the trainer counts, not that of the model."""
    key = "max_length" if work.has("max_length") else "max_seq_length"
    trainer.cut_length(work, key, 2048)
    work.keep("max_seq_length", "max_length")


def _objective(work: Translation) -> None:
    kind = work.text("trainer") or "SFTTrainer"
    objectives: dict[str, Objective] = {"DPOTrainer": "dpo", "ORPOTrainer": "orpo", "KTOTrainer": "kto"}
    objective = objectives.get(kind, "sft")
    if kind in objectives:
        work.carry("trainer", "train.objective", objective)
    elif kind in ("GRPOTrainer", "RewardTrainer"):
        work.drop("trainer", REASONS["preferences"])
    work.keep("trainer")
    if objective == "dpo":
        trainer.pair_loss(work, "loss_type", work.word("loss_type", "sigmoid"))
    trainer.preference_number(work, "beta", "train.beta", counts=objective != "sft")
    for key in ("desirable_weight", "undesirable_weight"):
        trainer.preference_number(work, key, f"train.{key}", counts=objective == "kto")
    switches = ("responses", "assistant_only_loss", "completion_only_loss")
    answers = next((key for key in switches if work.boolean(key)), "")
    if objective == "sft" and answers:
        work.carry(answers, "data.supervise", "assistant")
    elif objective == "sft":
        reason = "Without train_on_responses_only the whole text is learned; assistant learns answers."
        work.change("responses", "data.supervise", "all", reason)
    work.keep(*switches, "loss_type")


def _packing(work: Translation) -> None:
    if work.boolean("packing"):
        trainer.pack(work, "packing", trainer.FILLED)
    elif work.boolean("padding_free"):
        trainer.pack(work, "padding_free")
    work.keep("packing", "padding_free")


def _activations(work: Translation) -> None:
    of_model, of_trainer = "use_gradient_checkpointing", "gradient_checkpointing"
    unsloth.activations(work, of_model)
    if "memory.gradient_checkpointing" in work.settings and not work.is_(of_trainer, "unsloth"):
        work.keep(of_trainer)
    else:
        unsloth.activations(work, of_trainer)


def _seed(work: Translation) -> None:
    seed = "seed" if work.has("seed") else "random_state"
    work.carry(seed, "train.seed", work.integer(seed))
    work.change(seed, "train.seed", 3407, "Not given: Unsloth's default is 3407.")
    work.keep("random_state", reason="train.seed is that of the adapters too.")


_CARRIED: dict[str, Joint] = {
    "model_class": _model,
    **shared(trainer.model_base, "model_name revision"),
    **joint(_data, "train_dataset eval_dataset dataset.map"),
    **joint(
        _objective,
        "trainer beta loss_type desirable_weight undesirable_weight responses assistant_only_loss completion_only_loss",
    ),
    **joint(_method, "full_finetuning load_in_4bit load_in_8bit load_in_16bit target_modules"),
    **joint(_length, "max_seq_length max_length"),
    **shared(trainer.epochs, "num_train_epochs max_steps", 3.0),
    **shared(trainer.joined_batch, "per_device_train_batch_size gradient_accumulation_steps", (4, 2)),
    **shared(trainer.schedule, "lr_scheduler_type warmup_ratio warmup_steps", "linear", 0.1),
    **joint(_packing, "packing padding_free"),
    **joint(_activations, "use_gradient_checkpointing gradient_checkpointing"),
    **joint(_seed, "seed random_state"),
}


def _places(values: Mapping[str, Any]) -> Iterable[Any]:
    return [values.get("model_name"), *named_files(values.get("train_dataset"), values.get("eval_dataset"))]


def _tool() -> Any:
    own = read_tool("unsloth-script", _CARRIED, _places)
    theirs = {
        key: rule
        for key, rule in LLAMA_FACTORY.table.items()
        if key in _TRAINER.split() or (isinstance(rule, Unsupported) and rule.reason != REASONS["older"])
    }
    return replace(own, table={**own.table, **{key: rule for key, rule in theirs.items() if key not in own.table}})


#: The arguments of Unsloth's functions and of the trainers; those that are not listed are left, and are no error.
UNSLOTH_SCRIPT = _tool()
