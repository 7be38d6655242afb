from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sample_data
from core.config.derived import step_count
from core.config.document import ConfigDocument
from core.config.facts import Facts, Unkept, read_shape
from core.config.rules.check import RULES, check_rules
from core.config.schema import Config, find_option
from core.errors import UserError
from core.memory.planner import disk_need
from core.models.architecture.families import read_architecture
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.models.architecture.test_gguf_header import write_gguf

LLAMA = read_architecture(published.LLAMA_3_8B, "llama")
GPT2 = read_architecture(published.GPT_2, "gpt2")
MIXTRAL = read_architecture(published.MIXTRAL_8X7B, "mixtral")
#: A run that trains the weights of its file.
FOR_FILE: dict[str, Any] = {"method__train_for": "q4_0"}


def _on_disk(free: int) -> Facts:
    """A known model, and so much room on the disk."""
    return Facts(model=LLAMA, free_bytes=free, disk_need=partial(disk_need, LLAMA))


def config(**values: Any) -> Config:
    """A valid configuration; ``train__epochs=2`` sets ``train.epochs``."""
    sections: dict[str, dict[str, Any]] = {"data": {"train": "rows.jsonl"}}
    for name, value in values.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    return Config.model_validate(sections)


#: Options, facts, the level and some words of the one remark that they lead to; each breaks one rule.
METERED: dict[str, Any] = {
    "hardware.temperature_limit_c": 80.0,
    "hardware.memory_temperature_limit_c": 90.0,
    "hardware.power_limit_w": 200.0,
    "night.energy_kwh": 1.0,
}


def _blind(option: str) -> Facts:
    """A device that cannot keep an option."""
    return Facts(unkept=lambda _: [Unkept(option, f"It is blind, so {option} cannot be kept.", "Remove the option.")])


BROKEN: list[tuple[dict[str, Any], Facts, str, str]] = [
    ({"data__weights": [1.0, 2.0]}, Facts(), "error", "data.weights has 2 numbers and data.train 1 entry."),
    ({"data__eval": "a", "data__eval_share": 0.1}, Facts(), "error", "both say what is held out"),
    ({"eval__every_steps": 5}, Facts(), "warning", "eval.every_steps is set, but there are no held-out rows"),
    ({"eval__every_epochs": 0.5}, Facts(), "warning", "no held-out rows to measure on"),
    (
        {"data__eval": "a", "eval__every_steps": 5, "eval__every_epochs": 1.0},
        Facts(),
        "error",
        "both say how often it is measured",
    ),
    ({"checkpoint__final": "best"}, Facts(), "error", "no held-out rows to tell which step is"),
    ({"eval__patience": 3}, Facts(), "error", "no held-out rows whose loss"),
    ({"data__eval": "a", "eval__patience": 3}, Facts(), "warning", "at the end only"),
    ({"eval__exact_match": True}, Facts(), "warning", "no held-out rows to ask"),
    ({"template__variables": {"tools": "none"}}, Facts(), "error", "sets tools, which every rendering is given"),
    (
        {"template__variables": {"enable_thinking": False}, "template__name": "chatml"},
        Facts(),
        "error",
        "The template chatml has no variables",
    ),
    (
        {"eval__exact_match": True, "data__eval": "a", "data__format": "text"},
        Facts(),
        "warning",
        "rows of text have no question",
    ),
    ({"eval__baseline": True}, Facts(), "warning", "eval.baseline is on, but"),
    (
        {"data__eval": "a", "eval__gate": "loss less than 1"},
        Facts(),
        "error",
        "eval.gate: 'loss less than 1' has no <=",
    ),
    ({"eval__gate": "loss < 1"}, Facts(), "error", "no held-out rows to judge the result by"),
    ({"data__eval": "a", "eval__gate": "exact_match > 0.5"}, Facts(), "error", "exact_match, which is not measured"),
    ({"data__eval": "a", "eval__gate": "loss < before"}, Facts(), "error", "compares loss with before"),
    (
        {"data__eval": "a", "eval__gate": ["loss < 1", "probe_loss < before"], "eval__probe": False},
        Facts(),
        "error",
        "probe_loss, which is not measured",
    ),
    (
        {"method__name": "freeze", "train__precision": "fp16", "train__learning_rate": 1e-5},
        Facts(),
        "error",
        "cannot be fp16",
    ),
    (
        {"method__name": "full", "train__learning_rate": 1e-5, "train__micro_batch_size": 2},
        Facts(),
        "error",
        "gradients cannot be added up over several",
    ),
    ({"night__deadline": "7 o'clock"}, Facts(), "error", "night.deadline: '7 o'clock' is no time of day."),
    ({"night__quiet_hours": "23:00"}, Facts(), "error", "night.quiet_hours: '23:00' is no span of the day."),
    ({"parking__hours": ["18:00-23:00", "noon"]}, Facts(), "error", "parking.hours: 'noon' is no span of the day."),
    ({"night__quiet_power_w": 150.0}, Facts(), "error", "night.quiet_power_w is set, but there are no quiet hours."),
    ({"tracking__project": "a/b"}, Facts(), "error", "the trackers do not take it as a name"),
    ({"tracking__wandb_mode": "online"}, Facts(), "warning", "wandb is not among tracking.tools"),
    (
        {"tracking__tools": ["wandb", "trackio"]},
        Facts(missing_trackers=frozenset({"trackio"})),
        "warning",
        "names trackio, which is not installed",
    ),
    ({"memory__optimizer_in_backward": "on"}, Facts(), "warning", "with method.name = qlora it does nothing"),
    (
        {"method__name": "full", "train__learning_rate": 1e-5, "train__max_grad_norm": 1.0},
        Facts(),
        "warning",
        "the norm is known when all is done",
    ),
    ({"method__name": "full"}, Facts(), "warning", "weights that are trained themselves diverge"),
    ({"distributed__strategy": "none", "distributed__processes": 2}, Facts(), "error", "distributed.strategy is none"),
    ({"distributed__hosts": "tower"}, Facts(), "error", "is started by Slurm or torchrun"),
    ({"distributed__gpus": ["0", "1"], "distributed__processes": 3}, Facts(), "error", "distributed.gpus names 2"),
    ({"distributed__gpus": ["0", "0"]}, Facts(), "error", "distributed.gpus names a card twice"),
    ({"distributed__gpus": ["0", "all"]}, Facts(), "error", "has all and other names"),
    ({"distributed__gpus": "1", "hardware__gpu": "0"}, Facts(), "error", "hardware.gpu names one card, and"),
    ({"distributed__processes": 2, "hardware__gpu": "0"}, Facts(), "error", "distributed.processes wants more"),
    (
        {
            "distributed__processes": 2,
            "memory__optimizer_in_backward": "on",
            "method__name": "full",
            "train__learning_rate": 1e-5,
        },
        Facts(),
        "error",
        "the gradients of several processes are added up after backward",
    ),
    ({"distributed__processes": 9}, Facts(), "warning", "9 processes share the rows of a step"),
    (
        {"distributed__strategy": "deepspeed", "distributed__processes": 2},
        Facts(has_deepspeed=False),
        "error",
        "DeepSpeed is not installed",
    ),
    (
        {"distributed__strategy": "deepspeed", "train__optimizer": "adamw_8bit"},
        Facts(),
        "error",
        "the states of adamw_8bit cannot be shared out",
    ),
    (
        {"distributed__strategy": "deepspeed", "train__precision": "fp16"},
        Facts(),
        "error",
        "train.precision fp16 needs a scaler",
    ),
    (
        FOR_FILE | {"distributed__strategy": "deepspeed"},
        Facts(model=LLAMA),
        "error",
        "distributed.strategy is deepspeed, and method.train_for needs its weights",
    ),
    (
        {
            "distributed__strategy": "deepspeed",
            "distributed__zero_stage": 3,
            "train__objective": "dpo",
            "data__format": "preference",
            "train__learning_rate": 5e-6,
        },
        Facts(),
        "error",
        "distributed.zero_stage is 3, and the reference of dpo",
    ),
    (
        {
            "distributed__strategy": "deepspeed",
            "distributed__zero_stage": 3,
            "method__dora": True,
            "method__name": "lora",
        },
        Facts(),
        "error",
        "method.dora takes the norms of whole weights",
    ),
    (
        {"distributed__strategy": "deepspeed", "distributed__zero_stage": 3, "method__init": "pissa"},
        Facts(),
        "error",
        "method.init = pissa has a second adapter",
    ),
    ({"distributed__zero_stage": 3}, Facts(), "warning", "with distributed.strategy = auto it does nothing"),
    (
        {"distributed__offload": "all", "distributed__strategy": "replicate"},
        Facts(),
        "warning",
        "nothing is shared out that could be moved",
    ),
    (
        {"distributed__strategy": "fsdp2", "train__objective": "dpo", "data__format": "preference"},
        Facts(),
        "error",
        "the reference of dpo is the model without its adapters",
    ),
    (
        {
            "distributed__strategy": "fsdp2",
            "method__name": "full",
            "train__learning_rate": 1e-5,
            "train__optimizer": "adamw_8bit",
        },
        Facts(),
        "error",
        "the states of adamw_8bit belong to whole tensors",
    ),
    (
        {"distributed__strategy": "fsdp2", "method__train_for": "q4_0"},
        Facts(),
        "error",
        "method.train_for needs whole weights",
    ),
    ({"template__name": "chatml", "template__file": "a"}, Facts(), "error", "are both set"),
    ({"data__format": "preference"}, Facts(), "error", "train.objective is sft, which learns answers as they are"),
    (
        {"data__format": "kto", "train__objective": "dpo"},
        Facts(),
        "error",
        "train.objective is dpo, which learns from preference pairs",
    ),
    ({"data__supervise": "all", "train__objective": "orpo"}, Facts(), "error", "compares answers, not questions"),
    ({"method__init": "loftq", "train__objective": "dpo"}, Facts(), "error", "compares with the base without them"),
    ({"train__packing": True, "method__neftune_alpha": 5.0}, Facts(), "error", "each row of a padded batch"),
    ({"train__packing": True, "train__fused_layers": False}, Facts(), "error", "keeps packed rows apart"),
    ({"method__neftune_alpha": 5.0, "train__objective": "kto"}, Facts(), "error", "makes answers less certain"),
    ({"train__dpo_loss": "ipo"}, Facts(), "warning", "with train.objective = sft it does nothing"),
    ({"train__desirable_weight": 2.0, "train__objective": "dpo"}, Facts(), "warning", "dpo they do nothing"),
    ({"train__batch_size": 2, "train__objective": "kto"}, Facts(), "warning", "measures on each step's rows"),
    ({"train__max_length": 2048}, Facts(model=GPT2), "error", "has learned 1024 positions"),
    ({"train__max_length": 16384}, Facts(model=LLAMA), "warning", "was made for rows of 8192 tokens"),
    ({"train__precision": "fp16", "hardware__device": "cpu"}, Facts(), "error", "trains badly on a CPU"),
    ({"train__precision": "fp16"}, Facts(device="cpu"), "error", "trains badly on a CPU"),
    ({"train__precision": "bf16"}, Facts(device="cuda", bf16=False), "error", "which this card does not have"),
    ({"train__optimizer": "paged_adamw_8bit", "hardware__device": "cpu"}, Facts(), "warning", "nothing is paged"),
    (
        {"memory__activation_offload": "on", "hardware__device": "cpu"},
        Facts(),
        "warning",
        "on a CPU all activations are in the machine's memory",
    ),
    (
        {"memory__activation_offload": "on", "memory__gradient_checkpointing": "off"},
        Facts(),
        "error",
        "memory.gradient_checkpointing is off",
    ),
    (
        {"memory__offload_experts": "on", "hardware__device": "cpu"},
        Facts(),
        "warning",
        "on a CPU all experts are in the machine's memory",
    ),
    ({"memory__offload_experts": "on"}, Facts(model=LLAMA), "warning", "the model has no experts"),
    ({"method__target_experts": "on"}, Facts(model=LLAMA), "warning", "target_experts is on, and the model has no"),
    (
        {"model__keep_16bit": ["layers.0.*", "layers.99.*"]},
        Facts(model=LLAMA),
        "warning",
        "has layers.99.*, and no layer of the model has that name",
    ),
    ({"method__alpha": 4.0}, Facts(), "warning", "a scale of 0.25, with which little is learned"),
    ({"method__alpha": 128.0}, Facts(), "warning", "a scale of 8, with which training becomes unsteady"),
    ({"method__rslora": True, "method__rank": 64, "method__alpha": 128.0}, Facts(), "warning", "here 16, with which"),
    ({"method__rslora": True, "method__rank": 64, "method__alpha": 1.0}, Facts(), "warning", "here 0.125, with which"),
    ({"method__dora": True}, Facts(), "warning", "4-bit base is slow"),
    (
        {"method__dora": True, "method__name": "lora", "method__dropout": 0.1},
        Facts(),
        "warning",
        "every adapted layer twice",
    ),
    ({"method__dropout": 0.5}, Facts(), "warning", "method.dropout is 0.5"),
    ({"method__target_modules": ["re:(q", "v_proj"]}, Facts(), "error", "has re:(q, which cannot be used"),
    ({"model__keep_16bit": ["re:(q", "v_proj"]}, Facts(), "error", "model.keep_16bit has re:(q, which cannot be used"),
    ({"model__keep_16bit": "auto", "method__name": "lora"}, Facts(), "warning", "all layers are in 16 bit"),
    ({"method__init": "loftq", "method__name": "lora"}, Facts(), "error", "method.name = lora rounds nothing"),
    (
        {"method__init": "pissa", "method__dora": True, "method__name": "lora"},
        Facts(),
        "error",
        "measures its magnitudes on weights",
    ),
    (FOR_FILE | {"method__name": "freeze", "train__learning_rate": 1e-5}, Facts(), "error", "which has no adapters"),
    (FOR_FILE | {"method__dora": True, "method__name": "lora"}, Facts(), "error", "method.dora scales the sum"),
    (FOR_FILE | {"method__init": "pissa"}, Facts(), "error", "a second adapter in each layer"),
    (FOR_FILE | {"method__dropout": 0.1}, Facts(), "error", "method.dropout is above 0"),
    (FOR_FILE | {"method__target_modules": ["q_proj"]}, Facts(), "error", "leaves layers out"),
    (FOR_FILE | {"train__objective": "dpo"}, Facts(), "error", "compares with the base, which is not rounded"),
    (FOR_FILE | {"train__compile": True}, Facts(), "error", "train.compile replaces the layers"),
    (FOR_FILE | {"train__fused_layers": False}, Facts(), "error", "they are the layers that round"),
    (FOR_FILE, Facts(model=MIXTRAL), "error", "has experts"),
    (FOR_FILE, Facts(model=replace(LLAMA, hidden=LLAMA.hidden + 8)), "error", "no whole blocks of 32"),
    ({"method__train_for": "q8_0"}, Facts(), "warning", "gained nothing measurable"),
    (FOR_FILE | {"train__max_hours": 8.0}, Facts(), "error", "train.max_hours could end the run before its last third"),
    (FOR_FILE | {"train__max_energy_wh": 9.0}, Facts(), "error", "train.max_energy_wh could end the run"),
    (
        {"train__on_loss_spike": "skip", "method__name": "full", "train__learning_rate": 1e-5},
        Facts(),
        "error",
        "the weights have changed when the loss is known",
    ),
    (
        {"method__target_experts": "on", "method__dora": True, "method__name": "lora"},
        Facts(),
        "error",
        "no magnitudes for experts",
    ),
    ({"method__target_experts": "on", "method__init": "pissa"}, Facts(), "error", "computed for linear layers only"),
    ({"method__init": "pissa", "method__dropout": 0.1}, Facts(), "warning", "drops from the main directions"),
    ({"method__loraplus_ratio": 64.0}, Facts(), "warning", "second matrices learn at 0.0128"),
    ({"train__optimizer": "lion_8bit"}, Facts(), "warning", "which is much for lion_8bit"),
    ({"train__optimizer": "lion_8bit", "train__learning_rate": 1e-7}, Facts(), "warning", "is little for lion_8bit"),
    ({"train__learning_rate": 1e-5}, Facts(), "warning", "too low for adapters"),
    ({"train__learning_rate": 1e-2}, Facts(), "warning", "adapters diverge"),
    ({"train__epochs": 2.0, "train__max_steps": 10}, Facts(), "warning", "train.epochs is ignored"),
    ({"train__warmup": 0.6}, Facts(), "warning", "train.warmup is 60% of the run"),
    ({"train__warmup": 10.0, "train__max_steps": 10}, Facts(), "warning", "never gets to its peak"),
    ({"train__warmup": 10.0}, Facts(rows=80), "warning", "the run has 10"),
    ({"train__micro_batch_size": 9}, Facts(), "warning", "more are never at hand"),
    ({"train__batch_size": 9}, Facts(rows=8), "warning", "there are 8 rows: an epoch is one step"),
    ({"train__batch_size": 9}, Facts(rows=1), "warning", "there is one row: an epoch is one step"),
    ({"data__eval_share": 0.1, "train__batch_size": 1}, Facts(rows=1), "error", "there is one row"),
    (
        {"eval__every_steps": 10, "data__eval": "a", "train__max_steps": 10},
        Facts(),
        "warning",
        "it is measured at the end only",
    ),
    ({"checkpoint__every_steps": 11, "train__max_steps": 10}, Facts(), "warning", "begins anew"),
    (
        {},
        _on_disk(10**8),
        "error",
        "A checkpoint takes about 503 MB, and the disk",
    ),
    (
        {},
        _on_disk(10**9),
        "warning",
        "3 checkpoints, the one being written and",
    ),
    *(
        ({name.replace(".", "__"): value}, _blind(name), "error", f"so {name} cannot be kept")
        for name, value in METERED.items()
    ),
    ({"night__deadline": "07:00"}, _blind("night.deadline"), "error", "so night.deadline cannot be kept"),
    (
        {"night__quiet_hours": "23:00-07:00", "night__quiet_power_w": 90.0},
        _blind("night.quiet_power_w"),
        "error",
        "so night.quiet_power_w cannot be kept",
    ),
]

#: The same options and facts, without the breach of the rule.
KEPT: list[tuple[dict[str, Any], Facts]] = [
    ({"data__eval_share": 0.1, "train__batch_size": 1}, Facts(rows=2)),
    ({"distributed__gpus": ["0", "1"], "distributed__processes": 2}, Facts()),
    ({"distributed__gpus": "all", "distributed__processes": 4}, Facts()),
    (
        {
            "distributed__processes": 2,
            "distributed__strategy": "deepspeed",
            "distributed__zero_stage": 3,
            "distributed__offload": "all",
        },
        Facts(has_deepspeed=True),
    ),
    ({"distributed__strategy": "none"}, Facts()),
    ({"distributed__strategy": "deepspeed", "distributed__processes": 2}, Facts(has_deepspeed=True)),
    ({"distributed__strategy": "deepspeed"}, Facts(has_deepspeed=False)),
    (
        {
            "distributed__strategy": "deepspeed",
            "train__objective": "dpo",
            "data__format": "preference",
            "train__learning_rate": 5e-6,
        },
        Facts(),
    ),
    ({"distributed__strategy": "fsdp2", "train__optimizer": "adamw_8bit"}, Facts()),
    ({"distributed__strategy": "fsdp2", "method__name": "full", "train__learning_rate": 1e-5}, Facts()),
    ({"distributed__processes": 2, "method__name": "full", "train__learning_rate": 1e-5}, Facts()),
    ({"train__max_hours": 8.0, "train__max_energy_wh": 900.0}, Facts()),
    ({"method__target_experts": "on"}, Facts()),
    ({"train__on_loss_spike": "rollback", "method__name": "full", "train__learning_rate": 1e-5}, Facts()),
    ({"train__on_loss_spike": "skip", "method__name": "freeze", "train__learning_rate": 1e-5}, Facts()),
    ({"method__target_experts": "auto", "method__init": "pissa"}, Facts()),
    (
        {
            "data__eval": "a",
            "eval__baseline": True,
            "eval__exact_match": True,
            "eval__gate": ["loss <= 0.9*before", "exact_match >= 0.8", "probe_loss <= before + 0.1"],
        },
        Facts(),
    ),
    ({"data__eval": "a", "eval__gate": "probe_loss < before"}, Facts()),
    ({"data__weights": [2.0]}, Facts()),
    ({"data__eval": "a", "eval__every_steps": 5, "eval__exact_match": True, "eval__baseline": True}, Facts()),
    ({"data__eval_share": 0.1, "eval__every_steps": 5}, Facts()),
    ({"data__eval_share": 0.1, "eval__every_epochs": 0.5, "eval__patience": 2, "checkpoint__final": "best"}, Facts()),
    ({"eval__prompts": "a", "eval__every_steps": 5}, Facts()),
    ({"train__max_length": 1024}, Facts(model=GPT2)),
    ({"data__format": "preference", "train__objective": "orpo", "method__init": "loftq"}, Facts()),
    ({"train__objective": "dpo", "method__init": "pissa"}, Facts()),
    (FOR_FILE, Facts(model=LLAMA)),
    (FOR_FILE | {"train__objective": "orpo", "data__format": "preference", "method__init": "loftq"}, Facts()),
    ({"data__format": "kto", "train__objective": "kto", "train__desirable_weight": 2.0}, Facts()),
    ({"train__objective": "dpo", "train__dpo_loss": "hinge", "train__learning_rate": 5e-6}, Facts()),
    ({"train__max_length": 8192}, Facts(model=LLAMA)),
    ({"train__precision": "fp16"}, Facts(device="cuda")),
    ({"train__precision": "bf16"}, Facts(device="cuda", bf16=True)),
    ({"train__precision": "bf16", "hardware__device": "cpu"}, Facts(bf16=False)),
    ({"model__keep_16bit": ["layers.0.*", "re:.*down_proj"]}, Facts()),
    ({"method__alpha": 8.0}, Facts()),
    ({"parking__hours": ["18:00-23:00", "23:30 - 6:00"], "parking__programs": "steam"}, Facts()),
    ({"night__deadline": "07:00", "night__quiet_hours": "23:00-07:00", "night__quiet_power_w": 150.0}, Facts()),
    ({"method__alpha": 64.0}, Facts()),
    ({"method__rslora": True}, Facts()),
    ({"method__dora": True, "method__name": "lora"}, Facts()),
    ({"train__max_steps": 10, "train__warmup": 9.0, "checkpoint__every_steps": 10}, Facts()),
    ({"train__micro_batch_size": 8}, Facts(rows=8)),
    ({}, _on_disk(10**10)),
    (
        {"method__target_modules": ["q_proj"]},
        _on_disk(5 * 10**8),
    ),
    *(({name.replace(".", "__"): value}, Facts()) for name, value in METERED.items()),
    # A configuration that cannot be planned is refused elsewhere.
    ({"method__target_modules": ["no_such"]}, _on_disk(1)),
    ({}, Facts(free_bytes=1)),
]


@cases(("values", "facts", "level", "words"), BROKEN, ids=lambda value: str(value)[:40])
def test_a_broken_rule_is_told_once(values: dict[str, Any], facts: Facts, level: str, words: str) -> None:
    (remark,) = check_rules(config(**values), facts)
    assert remark.level == level
    assert words in remark.sentence
    assert remark.sentence.endswith(".")
    assert remark.hint.endswith(".")
    assert any(name in remark.sentence for name in remark.options) or "checkpoint" in remark.sentence


@cases(("values", "facts"), KEPT, ids=lambda value: str(value)[:40])
def test_a_rule_that_is_kept_is_silent(values: dict[str, Any], facts: Facts) -> None:
    assert check_rules(config(**values), facts) == []


def test_every_rule_is_broken_above_and_is_about_options_that_exist() -> None:
    broken = {
        rule
        for values, facts, _, _ in BROKEN
        for rule in range(len(RULES))
        if any(True for _ in RULES[rule].check(config(**values), facts))
    }
    assert broken == set(range(len(RULES)))
    for rule in RULES:
        assert rule.says.endswith(".")
        assert all(find_option(name) for name in rule.options)


def test_errors_come_first() -> None:
    remarks = check_rules(config(eval__baseline=True, template__name="chatml", template__file="a"))
    assert [remark.level for remark in remarks] == ["error", "warning"]


def test_the_sample_breaks_no_rule() -> None:
    document = ConfigDocument.load(sample_data.path("tickets.toml"))
    assert document.problems() == {}
    assert document.remarks(Facts(rows=400)) == []


def test_steps_are_counted_as_the_worker_does() -> None:
    assert step_count(config(), None) is None
    assert step_count(config(train__epochs=1.5), 17) == 5
    assert step_count(config(train__max_steps=7), 17) == 7


def test_a_document_raises_errors_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[data]\ntrain = "a"\n\n[template]\n# both\nname = "chatml"\nfile = "b"\n')
    document = ConfigDocument.load(path)
    assert document.problems() == {"template.name": "template.name and template.file are both set."}
    with pytest.raises(UserError) as caught:
        document.validate()
    assert caught.value.message == f"{path}, line 6: template.name and template.file are both set."
    assert document.remarks() == []


def test_a_remark_is_placed_at_the_option_that_the_file_writes(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[data]\ntrain = "a"\n[method]\nrank = 512\n')
    document = ConfigDocument.load(path)
    (remark,) = document.remarks()
    assert remark.options[0] == "method.alpha"
    assert str(document.complaint(remark)).startswith(f"{path}, line 4: method.alpha is 32 at rank 512")
    document.apply(["method.rank=256"])
    (remark,) = document.remarks()
    assert str(document.complaint(remark)).startswith("--set method.rank: method.alpha is 32 at rank 256")


@cases("free", [6 * 10**8, 10**9, 17 * 10**8, 2 * 10**9, 2_190_000_000])
def test_with_as_many_checkpoints_as_are_advised_there_is_room(free: int) -> None:
    facts = _on_disk(free)
    (remark,) = check_rules(config(), facts)
    match = re.search(r"Lower checkpoint.keep to (\d+)", remark.hint)
    if match is None:
        assert remark.hint == "Make room."
        assert check_rules(config(checkpoint__keep=1), facts) != []
    else:
        assert check_rules(config(checkpoint__keep=int(match[1])), facts) == []
        assert check_rules(config(checkpoint__keep=int(match[1]) + 1), facts) != []


def test_a_shape_is_read_from_directories_and_gguf_files_and_unknown_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    write_gguf(tmp_path / "small.gguf")
    assert read_shape("model", tmp_path) == read_shape(str(tmp_path / "model")) == LLAMA
    small = read_shape("small.gguf", tmp_path)
    assert small is not None
    assert (small.vocabulary, small.depth, small.positions) == (120, 2, 512)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "empty.gguf").touch()
    for name in ("nowhere", "", "a\0b", "~nobody/x", "broken.gguf", "empty.gguf", "nobody/nothing"):
        assert read_shape(name, tmp_path) is None
