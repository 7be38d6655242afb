from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli

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


def _on_disk(free: int) -> Facts:
    """A known model, and so much room on the disk."""
    return Facts(model=LLAMA, free_bytes=free, disk_need=partial(disk_need, LLAMA))


def config(options: str = "") -> Config:
    """A valid configuration with options as TOML: ``train.epochs = 2.0; train.seed = 7``."""
    return Config.model_validate(tomli.loads("\n".join(["data.train = 'rows.jsonl'", *options.split("; ")])))


METERED: dict[str, Any] = {
    "hardware.temperature_limit_c": 80.0,
    "hardware.memory_temperature_limit_c": 90.0,
    "hardware.power_limit_w": 200.0,
    "night.energy_kwh": 1.0,
}


def _blind(option: str) -> Facts:
    """A device that cannot keep an option."""
    return Facts(unkept=lambda _: [Unkept(option, f"It is blind, so {option} cannot be kept.", "Remove the option.")])


#: Options as TOML, the level and some words of the one remark that they lead to, and the facts if there are any; each
#: breaks one rule.
BROKEN: list[tuple[Any, ...]] = [
    ("data.weights=[1.0, 2.0]", "error", "data.weights has 2 numbers and data.train 1 entry."),
    ("data.eval='a'; data.eval_share=0.1", "error", "both say what is held out"),
    ("eval.every_steps=5", "warning", "eval.every_steps is set, but there are no held-out rows"),
    ("eval.every_epochs=0.5", "warning", "no held-out rows to measure on"),
    ("data.eval='a'; eval.every_steps=5; eval.every_epochs=1.0", "error", "both say how often it is measured"),
    ("checkpoint.final='best'", "error", "no held-out rows to tell which step is"),
    ("eval.patience=3", "error", "no held-out rows whose loss"),
    ("data.eval='a'; eval.patience=3", "warning", "at the end only"),
    ("eval.exact_match=true", "warning", "no held-out rows to ask"),
    ("template.variables={tools = 'none'}", "error", "sets tools, which every rendering is given"),
    ("template.variables={enable_thinking = false}; template.name='chatml'", "error",
     "The template chatml has no variables"),
    ("eval.exact_match=true; data.eval='a'; data.format='text'", "warning", "rows of text have no question"),
    ("eval.baseline=true", "warning", "eval.baseline is on, but"),
    ("data.eval='a'; eval.gate='loss less than 1'", "error", "eval.gate: 'loss less than 1' has no <="),
    ("eval.gate='loss < 1'", "error", "no held-out rows to judge the result by"),
    ("data.eval='a'; eval.gate='exact_match > 0.5'", "error", "exact_match, which is not measured"),
    ("data.eval='a'; eval.gate='loss < before'", "error", "compares loss with before"),
    ("data.eval='a'; eval.gate=['loss < 1', 'probe_loss < before']; eval.probe=false", "error",
     "probe_loss, which is not measured"),
    ("method.name='freeze'; train.precision='fp16'; train.learning_rate=1e-5", "error", "cannot be fp16"),
    ("method.name='full'; train.learning_rate=1e-5; train.micro_batch_size=2", "error",
     "gradients cannot be added up over several"),
    ('night.deadline="7 o\'clock"', "error", "night.deadline: '7 o'clock' is no time of day."),
    ("night.quiet_hours='23:00'", "error", "night.quiet_hours: '23:00' is no span of the day."),
    ("parking.hours=['18:00-23:00', 'noon']", "error", "parking.hours: 'noon' is no span of the day."),
    ("night.quiet_power_w=150.0", "error", "night.quiet_power_w is set, but there are no quiet hours."),
    ("tracking.project='a/b'", "error", "the trackers do not take it as a name"),
    ("tracking.wandb_mode='online'", "warning", "wandb is not among tracking.tools"),
    ("tracking.tools=['wandb', 'trackio']", "warning", "names trackio, which is not installed",
     Facts(missing_trackers=frozenset({"trackio"}))),
    ("memory.optimizer_in_backward='on'", "warning", "with method.name = qlora it does nothing"),
    ("method.name='full'; train.learning_rate=1e-5; train.max_grad_norm=1.0", "warning",
     "the norm is known when all is done"),
    ("method.name='full'", "warning", "weights that are trained themselves diverge"),
    ("distributed.strategy='none'; distributed.processes=2", "error", "distributed.strategy is none"),
    ("distributed.hosts='tower'", "error", "is started by Slurm or torchrun"),
    ("distributed.gpus=['0', '1']; distributed.processes=3", "error", "distributed.gpus names 2"),
    ("distributed.gpus=['0', '0']", "error", "distributed.gpus names a card twice"),
    ("distributed.gpus=['0', 'all']", "error", "has all and other names"),
    ("distributed.gpus='1'; hardware.gpu='0'", "error", "hardware.gpu names one card, and"),
    ("distributed.processes=2; hardware.gpu='0'", "error", "distributed.processes wants more"),
    ("distributed.processes=2; memory.optimizer_in_backward='on'; method.name='full'; train.learning_rate=1e-5",
     "error", "the gradients of several processes are added up after backward"),
    ("distributed.processes=9", "warning", "9 processes share the rows of a step"),
    ("distributed.strategy='deepspeed'; distributed.processes=2", "error", "DeepSpeed is not installed",
     Facts(has_deepspeed=False)),
    ("distributed.strategy='deepspeed'; train.optimizer='adamw_8bit'", "error",
     "the states of adamw_8bit cannot be shared out"),
    ("distributed.strategy='deepspeed'; train.precision='fp16'", "error", "train.precision fp16 needs a scaler"),
    ("method.train_for='q4_0'; distributed.strategy='deepspeed'", "error",
     "distributed.strategy is deepspeed, and method.train_for needs its weights", Facts(model=LLAMA)),
    (
        "distributed.strategy='deepspeed'; distributed.zero_stage=3; train.objective='dpo'; "
        "data.format='preference'; train.learning_rate=5e-6",
        "error",
        "distributed.zero_stage is 3, and the reference of dpo",
    ),
    ("distributed.strategy='deepspeed'; distributed.zero_stage=3; method.dora=true; method.name='lora'", "error",
     "method.dora takes the norms of whole weights"),
    ("distributed.strategy='deepspeed'; distributed.zero_stage=3; method.init='pissa'", "error",
     "method.init = pissa has a second adapter"),
    ("distributed.zero_stage=3", "warning", "with distributed.strategy = auto it does nothing"),
    ("distributed.offload='all'; distributed.strategy='replicate'", "warning",
     "nothing is shared out that could be moved"),
    ("distributed.strategy='fsdp2'; train.objective='dpo'; data.format='preference'", "error",
     "the reference of dpo is the model without its adapters"),
    ("distributed.strategy='fsdp2'; method.name='full'; train.learning_rate=1e-5; train.optimizer='adamw_8bit'",
     "error", "the states of adamw_8bit belong to whole tensors"),
    ("distributed.strategy='fsdp2'; method.train_for='q4_0'", "error", "method.train_for needs whole weights"),
    ("template.name='chatml'; template.file='a'", "error", "are both set"),
    ("data.format='preference'", "error", "train.objective is sft, which learns answers as they are"),
    ("data.format='kto'; train.objective='dpo'", "error", "train.objective is dpo, which learns from preference pairs"),
    ("data.supervise='all'; train.objective='orpo'", "error", "compares answers, not questions"),
    ("method.init='loftq'; train.objective='dpo'", "error", "compares with the base without them"),
    ("train.packing=true; method.neftune_alpha=5.0", "error", "each row of a padded batch"),
    ("train.packing=true; train.fused_layers=false", "error", "keeps packed rows apart"),
    ("method.neftune_alpha=5.0; train.objective='kto'", "error", "makes answers less certain"),
    ("train.dpo_loss='ipo'", "warning", "with train.objective = sft it does nothing"),
    ("train.desirable_weight=2.0; train.objective='dpo'", "warning", "dpo they do nothing"),
    ("train.batch_size=2; train.objective='kto'", "warning", "measures on each step's rows"),
    ("train.max_length=2048", "error", "has learned 1024 positions", Facts(model=GPT2)),
    ("train.max_length=16384", "warning", "was made for rows of 8192 tokens", Facts(model=LLAMA)),
    ("train.precision='fp16'; hardware.device='cpu'", "error", "trains badly on a CPU"),
    ("train.precision='fp16'", "error", "trains badly on a CPU", Facts(device="cpu")),
    ("train.precision='bf16'", "error", "which this card does not have", Facts(device="cuda", bf16=False)),
    ("train.optimizer='paged_adamw_8bit'; hardware.device='cpu'", "warning", "nothing is paged"),
    ("memory.activation_offload='on'; hardware.device='cpu'", "warning",
     "on a CPU all activations are in the machine's memory"),
    ("memory.activation_offload='on'; memory.gradient_checkpointing='off'", "error",
     "memory.gradient_checkpointing is off"),
    ("memory.offload_experts='on'; hardware.device='cpu'", "warning",
     "on a CPU all experts are in the machine's memory"),
    ("memory.offload_experts='on'", "warning", "the model has no experts", Facts(model=LLAMA)),
    ("method.target_experts='on'", "warning", "target_experts is on, and the model has no", Facts(model=LLAMA)),
    ("model.keep_16bit=['layers.0.*', 'layers.99.*']", "warning",
     "has layers.99.*, and no layer of the model has that name", Facts(model=LLAMA)),
    ("method.alpha=4.0", "warning", "a scale of 0.25, with which little is learned"),
    ("method.alpha=128.0", "warning", "a scale of 8, with which training becomes unsteady"),
    ("method.rslora=true; method.rank=64; method.alpha=128.0", "warning", "here 16, with which"),
    ("method.rslora=true; method.rank=64; method.alpha=1.0", "warning", "here 0.125, with which"),
    ("method.dora=true", "warning", "4-bit base is slow"),
    ("method.dora=true; method.name='lora'; method.dropout=0.1", "warning", "every adapted layer twice"),
    ("method.dropout=0.5", "warning", "method.dropout is 0.5"),
    ("method.target_modules=['re:(q', 'v_proj']", "error", "has re:(q, which cannot be used"),
    ("model.keep_16bit=['re:(q', 'v_proj']", "error", "model.keep_16bit has re:(q, which cannot be used"),
    ("model.keep_16bit='auto'; method.name='lora'", "warning", "all layers are in 16 bit"),
    ("method.init='loftq'; method.name='lora'", "error", "method.name = lora rounds nothing"),
    ("method.init='pissa'; method.dora=true; method.name='lora'", "error", "measures its magnitudes on weights"),
    ("method.train_for='q4_0'; method.name='freeze'; train.learning_rate=1e-5", "error", "which has no adapters"),
    ("method.train_for='q4_0'; method.dora=true; method.name='lora'", "error", "method.dora scales the sum"),
    ("method.train_for='q4_0'; method.init='pissa'", "error", "a second adapter in each layer"),
    ("method.train_for='q4_0'; method.dropout=0.1", "error", "method.dropout is above 0"),
    ("method.train_for='q4_0'; method.target_modules=['q_proj']", "error", "leaves layers out"),
    ("method.train_for='q4_0'; train.objective='dpo'", "error", "compares with the base, which is not rounded"),
    ("method.train_for='q4_0'; train.compile=true", "error", "train.compile replaces the layers"),
    ("method.train_for='q4_0'; train.fused_layers=false", "error", "they are the layers that round"),
    ("method.train_for='q4_0'", "error", "has experts", Facts(model=MIXTRAL)),
    ("method.train_for='q4_0'", "error", "no whole blocks of 32", Facts(model=replace(LLAMA, hidden=LLAMA.hidden + 8))),
    ("method.train_for='q8_0'", "warning", "gained nothing measurable"),
    ("method.train_for='q4_0'; train.max_hours=8.0", "error",
     "train.max_hours could end the run before its last third"),
    ("method.train_for='q4_0'; train.max_energy_wh=9.0", "error", "train.max_energy_wh could end the run"),
    ("train.on_loss_spike='skip'; method.name='full'; train.learning_rate=1e-5", "error",
     "the weights have changed when the loss is known"),
    ("method.target_experts='on'; method.dora=true; method.name='lora'", "error", "no magnitudes for experts"),
    ("method.target_experts='on'; method.init='pissa'", "error", "computed for linear layers only"),
    ("method.init='pissa'; method.dropout=0.1", "warning", "drops from the main directions"),
    ("method.loraplus_ratio=64.0", "warning", "second matrices learn at 0.0128"),
    ("train.optimizer='lion_8bit'", "warning", "which is much for lion_8bit"),
    ("train.optimizer='lion_8bit'; train.learning_rate=1e-7", "warning", "is little for lion_8bit"),
    ("train.learning_rate=1e-5", "warning", "too low for adapters"),
    ("train.learning_rate=0.01", "warning", "adapters diverge"),
    ("train.epochs=2.0; train.max_steps=10", "warning", "train.epochs is ignored"),
    ("train.warmup=0.6", "warning", "train.warmup is 60% of the run"),
    ("train.warmup=10.0; train.max_steps=10", "warning", "never gets to its peak"),
    ("train.warmup=10.0", "warning", "the run has 10", Facts(rows=80)),
    ("train.micro_batch_size=9", "warning", "more are never at hand"),
    ("train.batch_size=9", "warning", "there are 8 rows: an epoch is one step", Facts(rows=8)),
    ("train.batch_size=9", "warning", "there is one row: an epoch is one step", Facts(rows=1)),
    ("data.eval_share=0.1; train.batch_size=1", "error", "there is one row", Facts(rows=1)),
    ("eval.every_steps=10; data.eval='a'; train.max_steps=10", "warning", "it is measured at the end only"),
    ("checkpoint.every_steps=11; train.max_steps=10", "warning", "begins anew"),
    ("", "error", "A checkpoint takes about 503 MB, and the disk", _on_disk(10**8)),
    ("", "warning", "3 checkpoints, the one being written and", _on_disk(10**9)),
    *((f"{name}={value}", "error", f"so {name} cannot be kept", _blind(name)) for name, value in METERED.items()),
    ("night.deadline='07:00'", "error", "so night.deadline cannot be kept", _blind("night.deadline")),
    ("night.quiet_hours='23:00-07:00'; night.quiet_power_w=90.0", "error", "so night.quiet_power_w cannot be kept",
     _blind("night.quiet_power_w")),
]  # fmt: skip

#: The same options and facts, without the breach of the rule.
KEPT: list[tuple[Any, ...]] = [
    ("data.eval_share=0.1; train.batch_size=1", Facts(rows=2)),
    ("distributed.gpus=['0', '1']; distributed.processes=2",),
    ("distributed.gpus='all'; distributed.processes=4",),
    (
        "distributed.processes=2; distributed.strategy='deepspeed'; distributed.zero_stage=3; "
        "distributed.offload='all'",
        Facts(has_deepspeed=True),
    ),
    ("distributed.strategy='none'",),
    ("distributed.strategy='deepspeed'; distributed.processes=2", Facts(has_deepspeed=True)),
    ("distributed.strategy='deepspeed'", Facts(has_deepspeed=False)),
    ("distributed.strategy='deepspeed'; train.objective='dpo'; data.format='preference'; train.learning_rate=5e-6",),
    ("distributed.strategy='fsdp2'; train.optimizer='adamw_8bit'",),
    ("distributed.strategy='fsdp2'; method.name='full'; train.learning_rate=1e-5",),
    ("distributed.processes=2; method.name='full'; train.learning_rate=1e-5",),
    ("train.max_hours=8.0; train.max_energy_wh=900.0",),
    ("method.target_experts='on'",),
    ("train.on_loss_spike='rollback'; method.name='full'; train.learning_rate=1e-5",),
    ("train.on_loss_spike='skip'; method.name='freeze'; train.learning_rate=1e-5",),
    ("method.target_experts='auto'; method.init='pissa'",),
    (
        "data.eval='a'; eval.baseline=true; eval.exact_match=true; "
        "eval.gate=['loss <= 0.9*before', 'exact_match >= 0.8', 'probe_loss <= before + 0.1']",
    ),
    ("data.eval='a'; eval.gate='probe_loss < before'",),
    ("data.weights=[2.0]",),
    ("data.eval='a'; eval.every_steps=5; eval.exact_match=true; eval.baseline=true",),
    ("data.eval_share=0.1; eval.every_steps=5",),
    ("data.eval_share=0.1; eval.every_epochs=0.5; eval.patience=2; checkpoint.final='best'",),
    ("eval.prompts='a'; eval.every_steps=5",),
    ("train.max_length=1024", Facts(model=GPT2)),
    ("data.format='preference'; train.objective='orpo'; method.init='loftq'",),
    ("train.objective='dpo'; method.init='pissa'",),
    ("method.train_for='q4_0'", Facts(model=LLAMA)),
    ("method.train_for='q4_0'; train.objective='orpo'; data.format='preference'; method.init='loftq'",),
    ("data.format='kto'; train.objective='kto'; train.desirable_weight=2.0",),
    ("train.objective='dpo'; train.dpo_loss='hinge'; train.learning_rate=5e-6",),
    ("train.max_length=8192", Facts(model=LLAMA)),
    ("train.precision='fp16'", Facts(device="cuda")),
    ("train.precision='bf16'", Facts(device="cuda", bf16=True)),
    ("train.precision='bf16'; hardware.device='cpu'", Facts(bf16=False)),
    ("model.keep_16bit=['layers.0.*', 're:.*down_proj']",),
    ("method.alpha=8.0",),
    ("parking.hours=['18:00-23:00', '23:30 - 6:00']; parking.programs='steam'",),
    ("night.deadline='07:00'; night.quiet_hours='23:00-07:00'; night.quiet_power_w=150.0",),
    ("method.alpha=64.0",),
    ("method.rslora=true",),
    ("method.dora=true; method.name='lora'",),
    ("train.max_steps=10; train.warmup=9.0; checkpoint.every_steps=10",),
    ("train.micro_batch_size=8", Facts(rows=8)),
    ("", _on_disk(10**10)),
    ("method.target_modules=['q_proj']", _on_disk(5 * 10**8)),
    *((f"{name}={value}",) for name, value in METERED.items()),
    ("method.target_modules=['no_such']", _on_disk(1)),
    ("", Facts(free_bytes=1)),
]  # fmt: skip


@cases(("options", "level", "words", "facts"), [(*row, Facts())[:4] for row in BROKEN])
def test_a_broken_rule_is_told_once(options: str, level: str, words: str, facts: Facts) -> None:
    (remark,) = check_rules(config(options), facts)
    assert remark.level == level
    assert words in remark.sentence
    assert remark.sentence.endswith(".")
    assert remark.hint.endswith(".")
    assert any(name in remark.sentence for name in remark.options) or "checkpoint" in remark.sentence


@cases(("options", "facts"), [(*row, Facts())[:2] for row in KEPT])
def test_a_rule_that_is_kept_is_silent(options: str, facts: Facts) -> None:
    assert check_rules(config(options), facts) == []


def test_every_rule_is_broken_above_and_is_about_options_that_exist() -> None:
    broken = {
        rule
        for options, _, _, facts in ((*row, Facts())[:4] for row in BROKEN)
        for rule in range(len(RULES))
        if any(True for _ in RULES[rule].check(config(options), facts))
    }
    assert broken == set(range(len(RULES)))
    for rule in RULES:
        assert rule.says.endswith(".")
        assert all(find_option(name) for name in rule.options)


def test_errors_come_first() -> None:
    remarks = check_rules(config("eval.baseline = true; template.name = 'chatml'; template.file = 'a'"))
    assert [remark.level for remark in remarks] == ["error", "warning"]


def test_the_sample_breaks_no_rule() -> None:
    document = ConfigDocument.load(sample_data.path("tickets.toml"))
    assert document.problems() == {}
    assert document.remarks(Facts(rows=400)) == []


def test_steps_are_counted_as_the_worker_does() -> None:
    assert step_count(config(), None) is None
    assert step_count(config("train.epochs = 1.5"), 17) == 5
    assert step_count(config("train.max_steps = 7"), 17) == 7


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
        assert check_rules(config("checkpoint.keep = 1"), facts) != []
    else:
        assert check_rules(config(f"checkpoint.keep = {match[1]}"), facts) == []
        assert check_rules(config(f"checkpoint.keep = {int(match[1]) + 1}"), facts) != []


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
