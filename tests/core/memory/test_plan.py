"""Memory plan: its arithmetic, published measurements, lower bounds, and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.memory.calibration import Calibration, rates_of
from core.memory.phases import CUDA_LIBRARIES
from core.memory.plan import Machine, Plan
from core.memory.planner import arithmetic, disk_need, fit, make_least_plan, make_plan
from core.memory.rows import Rows
from core.memory.sizes import HOST_SLAB, quantized_bytes, quantized_experts_bytes
from core.memory.step_time import StepTime, touched_experts
from core.memory.weights import weight_parts
from core.models.architecture.architecture import read_architecture
from core.models.inspection import STARTER_FACTS
from tests.cases import cases
from tests.core.memory.plans import GIB, config_of, plan_of
from tests.core.models.architecture import published
from tests.short_list import long_but


@cases(("objective", "sequences"), [("sft", 1), ("kto", 1), ("dpo", 2), ("orpo", 2)])
def test_a_pair_takes_as_much_as_two_rows(objective: str, sequences: int) -> None:
    rows = Rows([(512, 64)], supervised=0.5)
    train = {"objective": objective, "micro_batch_size": 2}
    batch = plan_of(published.LLAMA_3_8B, rows, train=train).micro_batch
    plain = plan_of(published.LLAMA_3_8B, rows, train={"micro_batch_size": 2}).micro_batch
    assert (batch.rows, batch.length) == (2 * sequences, 512)
    assert batch.supervised == sequences * plain.supervised
    # As many as the budget of tokens lets through together.
    assert plan_of(published.LLAMA_3_8B, rows, train={"objective": objective, "batch_size": 64}).micro_batch.rows == 16


@cases("memory", [{}, {"gradient_checkpointing": "off"}, {"keep_dequantized": "on"}])
def test_the_least_plan_is_the_one_of_a_run_that_just_fits(memory: dict[str, str]) -> None:
    model, rows = read_architecture(published.LLAMA_3_8B, "m"), Rows([(1024, 64)])
    config = config_of(memory=memory)
    least = make_least_plan(model, config, Machine("cuda", 80 * GIB), rows)
    assert least.checkpointing == (not memory.get("gradient_checkpointing"))
    assert least.token_budget == 2048
    # A machine with exactly this much free memory gets this plan.
    assert make_least_plan(model, config, Machine("cuda", 16 * GIB), rows).needed_bytes == least.needed_bytes
    tight = make_plan(model, config, Machine("cuda", least.needed_bytes), rows)
    assert tight.fits
    assert tight.way == least.way
    assert make_plan(model, config, Machine("cuda", 80 * GIB), rows).needed_bytes > least.needed_bytes


#: Layers of a model whose passes are those of its other layers, and which is measured in less time.
FEW = 4
LLAMA = {**published.LLAMA_3_8B, "num_hidden_layers": FEW}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hidden", "width", "depth", "heads", "gib"),
    long_but([(6656, 17920, 60, 52, 24)], [(8192, 22016, 80, 64, 48), (6656, 17920, 60, 52, 24)]),
)
def test_what_the_qlora_paper_fits_on_a_card_fits(hidden: int, width: int, depth: int, heads: int, gib: int) -> None:
    """LLaMA-65B on 48 GB and 33B on 24 GB: rank 64 on every layer, a paged optimizer, one row of 512 tokens."""
    shape = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": depth}
    model = {**published.LLAMA_2_7B, **shape, "num_attention_heads": heads}
    train = {"batch_size": 1, "optimizer": "paged_adamw_8bit"}
    plan = plan_of(model, Rows([(512, 1)]), limit=gib * GIB, train=train, method={"rank": 64})
    assert plan.fits
    assert plan.total_bytes > 0.85 * gib * GIB


@cases("kind", ["cpu", "cuda"])
def test_checkpointing_is_on_by_itself_where_it_would_not_fit_without(kind: str) -> None:
    """Of one row, whose micro-batch cannot be smaller; of as few layers as need be."""

    def plan(limit: int | None = None, **memory: str) -> Plan:
        return plan_of(published.SMOLLM2_135M, kind=kind, limit=limit, memory=memory, train={"batch_size": 1})

    recomputed, kept = (plan(gradient_checkpointing=choice) for choice in ("on", "off"))
    assert recomputed.needed_bytes < kept.needed_bytes
    roomy, tight = plan(kept.needed_bytes), plan(kept.needed_bytes - 1)
    narrow, hopeless = plan(recomputed.needed_bytes), plan(recomputed.needed_bytes - 1, activation_offload="off")
    assert (roomy.checkpointing, roomy.fits) == (False, True)
    assert [(one.checkpointing, one.fits) for one in (tight, narrow)] == [(True, True)] * 2
    assert (hopeless.checkpointing, hopeless.fits) == (True, False)
    assert 0 == narrow.kept_layers < tight.kept_layers < 30
    assert narrow.parts == recomputed.parts
    # Where the limit is unknown.
    assert plan().checkpointing is (kind == "cuda")


def test_what_recomputing_starts_from_is_moved_off_a_gpu_by_need() -> None:
    rows, gpu = Rows([(8192, 1)]), {"train": {"batch_size": 1, "max_length": 8192}}
    here, there = (
        plan_of(published.LLAMA_3_8B, rows, memory={"activation_offload": choice}, **gpu) for choice in ("off", "on")
    )
    size = 8192 * 4096 * 2
    assert (here.offload, here.host_bytes) == (False, 0)
    assert (there.offload, there.checkpointing) == (True, True)
    positions = here.by_name()["activations"] - 32 * size
    assert positions < 0.01 * 32 * size
    # The input of the layer at work, and the one that is fetched ahead.
    assert there.by_name()["activations"] == 2 * size + positions
    assert there.host_bytes == 2 * 32 * size
    assert any("of the machine's memory" in note for note in there.notes)

    def by_need(limit: int, host: int | None = None) -> Plan:
        return plan_of(published.LLAMA_3_8B, rows, Machine("cuda", limit, host_bytes=host), **gpu)

    assert not by_need(here.needed_bytes).offload
    assert by_need(here.needed_bytes - 1).parts == there.parts
    assert by_need(here.needed_bytes - 1).fits
    assert by_need(there.needed_bytes - 1).fits is False
    enough = by_need(here.needed_bytes - 1, there.host_bytes)
    assert (enough.offload, enough.host_fits) == (True, True)
    short = by_need(here.needed_bytes - 1, there.host_bytes - 1)
    assert (short.offload, short.fits) == (False, False)
    # Small inputs stay where they are, and so does all on a CPU.
    on = {"activation_offload": "on"}
    assert not plan_of(published.SMOLLM2_135M, Rows([(64, 1)]), train={"batch_size": 1}, memory=on).offload
    assert not plan_of(published.LLAMA_3_8B, kind="cpu", memory={**on, "gradient_checkpointing": "on"}).offload


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
#: A mixture of 30B with fewer layers.
DEPTH = 6
SHALLOW = {**published.QWEN_3_30B_A3B, "num_hidden_layers": DEPTH}


@pytest.mark.slow
def test_a_mixture_of_30b_trains_on_a_card_of_24_gb() -> None:
    """Its experts get no adapters of rank 16 by themselves, which would be more than a hundredth of them."""
    plan = plan_of(
        published.QWEN_3_30B_A3B,
        Rows([(2048, 16)]),
        limit=22 * 10**9,
        train={"batch_size": 16},
        memory={"gradient_checkpointing": "on"},
    )
    assert plan.fits
    assert dict(plan.targets) == dict.fromkeys(ATTENTION, 48)
    assert plan.total_bytes <= 22 * 10**9


@cases(("kind", "moved"), [("cuda", 6), ("cpu", 36)])
def test_the_loss_takes_the_time_of_its_chunks_and_of_its_logits(kind: Literal["cuda", "cpu"], moved: int) -> None:
    """Products of 256 positions are thinner than those of a micro-batch of 2,048 tokens."""
    model = read_architecture(published.SMOLLM2_135M, "m")
    config = config_of(train={"max_length": 2048, "micro_batch_size": 1})
    rows = Rows([(2048, 16)], supervised=0.125)
    rates = rates_of("", None, cuda=kind == "cuda", wide=False)

    def step(vocabulary: int) -> StepTime:
        return make_plan(replace(model, vocabulary=vocabulary), config, Machine(kind), rows, source="rough").step

    less, more = step(10_000), step(20_000)
    products = 4 * model.hidden * (1 + rates.half / 256) / rates.matrix
    share = 10_000 * 0.125 * less.tokens * (products + moved / rates.memory)
    assert less.tokens == more.tokens
    assert more.seconds - less.seconds == pytest.approx(share, rel=0.01)


@pytest.mark.long
@pytest.mark.slow
def test_only_active_experts_compute_and_all_that_are_touched_are_dequantized() -> None:
    def seconds(**changes: Any) -> float:
        model = {**SHALLOW, **changes}
        train = {"batch_size": 1, "max_length": 2048}
        return plan_of(model, Rows([(2048, 1)]), train=train, method={"target_modules": ATTENTION}).step.seconds

    plain = seconds()
    # Other experts that no token passes through cost their dequantization, and thinner products.
    assert plain < seconds(num_experts=256) < 2 * plain
    assert seconds(num_experts_per_tok=16) > plain
    assert touched_experts(128, 8, 1) == pytest.approx(8)
    assert touched_experts(128, 8, 2048) == pytest.approx(128)


@cases(
    ("method", "is_said"),
    [({}, True), ({"target_experts": "off"}, False), ({"target_experts": "on"}, False), ({"name": "full"}, False)],
)
def test_the_plan_says_why_experts_have_no_adapters(method: dict[str, Any], is_said: bool) -> None:
    notes = plan_of(SHALLOW, method=method).notes
    assert any("79 M parameters, 2.2% of the experts' own" in note for note in notes) == is_said


def on_12_gb(host: int | None = 32 << 30, pins: bool = True, **sections: Any) -> Plan:
    """The plan of a mixture of 30B, rows of 2,048 tokens, on a card of 12 GB."""
    machine = Machine("cuda", 12 * 10**9, host_bytes=host, pins=pins)
    return plan_of(published.QWEN_3_30B_A3B, Rows([(2048, 16)]), machine, **sections)


@pytest.mark.slow
def test_experts_that_a_card_has_no_room_for_live_on_the_host() -> None:
    plan, without = on_12_gb(), on_12_gb(memory={"offload_experts": "off"})
    assert plan.fits
    assert without.fits is False
    one = sum(quantized_experts_bytes(128, size) for size in (128 * 2 * 768 * 2048, 128 * 2048 * 768))
    assert plan.by_name()["experts"] == 2 * one
    assert plan.experts_host_bytes == pytest.approx(48 * one, abs=HOST_SLAB)
    assert plan.host_fits
    assert plan.way.host_experts
    (told,) = [note for note in plan.notes if "machine's memory" in note]
    # 46 layers forward and 46 backward, and the time for it.
    moved = 92 * one
    assert f"{moved / 1e9:.1f} GB for each micro-batch" in told
    assert "at 20 GB/s (assumed)" in told
    assert plan.step.moved_seconds == pytest.approx(plan.step.micro_batches * moved / 20e9)
    assert plan.step.seconds >= plan.step.moved_seconds


@pytest.mark.long
@pytest.mark.slow
def test_experts_stay_on_the_card_where_they_fit_or_the_host_has_no_room() -> None:
    roomy = plan_of(published.QWEN_3_30B_A3B, Rows([(2048, 16)]), limit=24 * 10**9)
    assert roomy.fits
    assert not roomy.experts_host_bytes
    for short, words in ((on_12_gb(host=8 << 30), "8.6 GB are free"), (on_12_gb(pins=False), "WSL 2")):
        assert short.fits is False
        assert not short.experts_host_bytes
        assert any(words in note for note in short.notes)
    asked = on_12_gb(pins=False, memory={"offload_experts": "on"})
    assert asked.fits
    assert asked.experts_host_bytes
    shallow = {**published.MIXTRAL_8X7B, "num_hidden_layers": 2}
    for other in (
        plan_of(published.LLAMA_3_8B, memory={"offload_experts": "on"}),
        plan_of(shallow, memory={"offload_experts": "on"}, method={"name": "lora"}),
        plan_of(shallow, memory={"offload_experts": "on"}, kind="cpu"),
    ):
        assert not other.experts_host_bytes


@pytest.mark.slow
def test_a_measured_bus_changes_the_time_of_experts_on_the_host() -> None:
    def plan(rate: float | None) -> Plan:
        known = Calibration("card", 600 << 20, 0.04, "2.13", "2026-11-01", 60e12, 7e11, rate)
        machine = Machine("cuda", 12 * 10**9, host_bytes=32 << 30, device="card", calibration=known)
        return plan_of(published.QWEN_3_30B_A3B, Rows([(2048, 16)]), machine)

    slow, assumed = plan(5e9), plan(None)
    assert slow.step.moved_seconds == pytest.approx(4 * assumed.step.moved_seconds)
    assert slow.step.seconds == pytest.approx(slow.step.moved_seconds, rel=0.1)
    assert any("5 GB/s (measured on this device on 2026-11-01" in note for note in slow.notes)


def test_what_stays_in_16_bit_is_counted_by_layer_and_name() -> None:
    architecture = read_architecture(SHALLOW, "m")
    how = arithmetic(config_of(), Machine("cuda"))
    queries, experts = 2048 * 4096, (128 * 2 * 768 * 2048, 128 * 2048 * 768)

    def parts(*keep: str) -> dict[str, int]:
        return {part.name: part.bytes for part in weight_parts(architecture, how, 0, keep)}

    plain, kept = parts(), parts(r"re:model\.layers\.(0|1|5)\.self_attn\.q_proj")
    assert "linear_16bit" not in plain
    assert kept["linear_16bit"] == 3 * 2 * queries
    assert plain["linear_weights"] - kept["linear_weights"] == 3 * quantized_bytes(queries)
    whole = parts("model.layers.5.*")
    assert whole["experts_16bit"] == 2 * sum(experts)
    assert plain["experts"] - whole["experts"] == sum(quantized_experts_bytes(128, size) for size in experts)
    named = config_of(model={"base": "x", "keep_16bit": ["model.layers.5.*"]}, method={"target_modules": ATTENTION})
    planned = make_plan(architecture, named, Machine("cuda")).by_name()
    assert (planned["experts"], planned["experts_16bit"]) == (whole["experts"], whole["experts_16bit"])
    # All matrices of a layer's experts by the name of their module, one by its own.
    assert parts("layers.5.mlp.experts")["experts_16bit"] == whole["experts_16bit"]
    assert parts("layers.5.mlp.experts.down_proj")["experts_16bit"] == 2 * experts[1]
    # A gate of a shared expert has one output, and stays without being asked for.
    shared = {part.name: part.bytes for part in weight_parts(read_architecture(published.QWEN_1_5_MOE, "m"), how, 0)}
    assert shared["linear_16bit"] == 24 * 2 * 2048


def test_on_the_cpu_the_interpreter_counts_and_the_file_is_mapped() -> None:
    plan = plan_of(published.SMOLLM2_135M, Rows([(256, 8)]), kind="cpu", limit=10**9)
    assert plan.by_name()["runtime"] > 300e6
    for_cards = plan_of(published.SMOLLM2_135M, Rows([(256, 8)]), Machine("cpu", cuda_build=True))
    assert for_cards.by_name()["runtime"] == plan.by_name()["runtime"] + CUDA_LIBRARIES
    assert plan.reclaimable_bytes == plan.by_name()["weights_file"] == 2 * 30 * 3_538_944
    assert plan.fits == (plan.needed_bytes <= 10**9)


def test_loading_is_the_peak_where_weights_are_converted_and_rows_are_short() -> None:
    plan = plan_of(
        published.LLAMA_3_8B,
        Rows([(8, 1)]),
        kind="cpu",
        train={"precision": "fp32"},
        method={"name": "lora", "rank": 1, "target_modules": ["q_proj"]},
    )
    assert plan.phase == "loading"
    assert plan.total_bytes > 6 * plan.parameters


def test_disk_counts_a_checkpoint_more_than_is_kept() -> None:
    plan = plan_of(published.SMOLLM2_135M, checkpoint={"keep": 2})
    assert plan.checkpoint_bytes == pytest.approx(12 * plan.trainable, rel=0.01)
    assert plan.disk_bytes == pytest.approx(3 * plan.checkpoint_bytes + 4 * plan.trainable, rel=0.2)
    need = disk_need(read_architecture(published.SMOLLM2_135M, "m"), config_of(checkpoint={"keep": 2}))
    assert need == (plan.checkpoint_bytes, plan.disk_bytes)


@cases(
    ("sections", "words"),
    [
        ({"method": {"target_modules": ["query"]}}, "matches no layer"),
        ({"method": {"target_modules": ["lm_head"]}}, "matches no layer"),
        ({"train": {"max_length": 64}}, "No row has 64 tokens or fewer"),
        ({}, "knows 1024 positions"),
    ],
)
def test_what_the_run_would_refuse_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_of(published.GPT_2, Rows([(2048, 4)]), **sections)


NAMES = st.sampled_from(["SmolLM2-135M", "Llama-3-8B", "Qwen2.5-7B", "Gemma-2-9B", "SmolLM3-3B", "Qwen3-4B"])
CHOICES: dict[str, dict[str, Any]] = {
    "method": {
        "name": st.sampled_from(["qlora", "lora"]),
        "rank": st.integers(1, 128),
        "dropout": st.sampled_from([0.0, 0.1]),
        "dora": st.booleans(),
        "init": st.sampled_from(["default", "pissa"]),
    },
    "train": {
        "precision": st.sampled_from(["auto", "bf16", "fp32"]),
        "optimizer": st.sampled_from(["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_8bit"]),
        "batch_size": st.integers(1, 16),
    },
    "memory": dict.fromkeys(["gradient_checkpointing", "activation_offload"], st.sampled_from(["auto", "on", "off"])),
}
SETTINGS = st.fixed_dictionaries({section: st.fixed_dictionaries(keys) for section, keys in CHOICES.items()})


@given(NAMES, SETTINGS, st.sampled_from(["cpu", "cuda"]), st.integers(8, 1000), st.integers(0, 24), st.data())
def test_more_never_takes_less(
    name: str, settings: dict[str, Any], kind: str, length: int, more: int, data: st.DataObject
) -> None:
    model = published.PARAMETERS[name][0]
    larger = {section: dict(values) for section, values in settings.items()}
    rows = more_rows = Rows([(length // 8 * 8 or 8, 4)], 0.5)
    change = data.draw(st.sampled_from(["rank", "length", "supervised", "dropout", "dora", "precision"]))
    method, train = settings["method"], settings["train"]
    if change == "rank":
        larger["method"]["rank"] = min(method["rank"] + more, 1024)
    elif change == "length":
        # Within the budget of tokens, so that the rows stay together.
        rows, more_rows = Rows([(64, 4)], 0.5), Rows([(64 + 8 * more, 4)], 0.5)
    elif change == "supervised":
        more_rows = Rows(rows.runs, 1.0)
    elif change == "dropout":
        method["dropout"], larger["method"]["dropout"] = 0.0, 0.1
    elif change == "dora":
        method["dora"], larger["method"]["dora"] = False, True
    else:
        train["precision"], larger["train"]["precision"] = "bf16", "fp32"
    small, large = plan_of(model, rows, kind=kind, **settings), plan_of(model, more_rows, kind=kind, **larger)
    assert small.needed_bytes <= large.needed_bytes


@given(NAMES, SETTINGS, st.sampled_from(["cpu", "cuda"]))
def test_every_plan_adds_up_and_names_its_parts(name: str, settings: dict[str, Any], kind: str) -> None:
    plan = plan_of(published.PARAMETERS[name][0], kind=kind, **settings)
    assert all(part.bytes > 0 and part.what for part in plan.parts)
    assert len(plan.by_name()) == len(plan.parts)
    assert plan.total_bytes == sum(plan.by_name().values())
    assert plan.fits is None


def test_copies_of_weights_are_kept_where_there_is_plenty_of_memory() -> None:
    def kept(limit: int | None = None, **options: Any) -> Plan:
        return plan_of(published.SMOLLM2_135M, kind="cpu", limit=limit, **options)

    without, with_copies = kept(), kept(memory={"keep_dequantized": "on"})
    sizes = with_copies.by_name()
    assert "dequantized" not in without.by_name()
    # 16 bit of every weight that is in NF4: 4.127 bits.
    assert sizes["dequantized"] == pytest.approx(sizes["linear_weights"] * 16 / 4.127, rel=0.01)
    assert kept(limit=2 * with_copies.needed_bytes).dequantized
    assert not kept(limit=2 * with_copies.needed_bytes - 2).dequantized
    assert not kept(limit=1 << 40, memory={"keep_dequantized": "off"}).dequantized
    for options in ({"method": {"dora": True}}, {"train": {"compile": True}}, {"train": {"fused_layers": False}}):
        assert "dequantized" not in kept(limit=1 << 40, **options).by_name()


@pytest.mark.slow
def test_where_the_card_or_the_dtype_has_no_flash_attention_what_other_kernels_keep_counts() -> None:
    """Keys and values for every query head, or by torch's own attention all scores."""

    def kept(capability: tuple[int, int] | None, precision: str = "fp16", fused: bool = True) -> int:
        train = {"batch_size": 1, "precision": precision, "fused_layers": fused}
        machine, memory = Machine("cuda", capability=capability), {"gradient_checkpointing": "off"}
        return plan_of(LLAMA, Rows([(2048, 1)]), machine, train=train, memory=memory).by_name()["activations"]

    assert kept(None) == kept((8, 6)) == kept((8, 9))
    repeated = FEW * 2048 * 2 * 2 * (4096 - 1024)
    assert kept((7, 5)) - kept((8, 6)) == pytest.approx(repeated, rel=0.05)
    scores = FEW * 32 * 2048 * 2048 * 4
    assert kept((7, 5), fused=False) - kept((8, 6), fused=False) > 0.9 * scores
    assert kept((8, 9), "fp32", fused=False) > 2 * kept((8, 9), fused=False)


def test_where_nothing_can_be_paged_the_states_count_on_the_card() -> None:
    """As under WSL 2, where the unpaged form of the optimizer is used."""
    plans = [
        plan_of(
            published.LLAMA_3_8B, None, machine, method={"name": "full"}, train={"optimizer": kind, "batch_size": 1}
        )
        for kind, machine in (
            ("paged_adamw_8bit", Machine("cuda", pages=False)),
            ("adamw_8bit", Machine("cuda")),
            ("paged_adamw_8bit", Machine("cuda")),
        )
    ]
    assert plans[0].needed_bytes == plans[1].needed_bytes > plans[2].needed_bytes


def test_paged_states_are_checked_against_the_machines_memory() -> None:
    def plan_on(host: int, optimizer: str = "paged_adamw_8bit") -> Plan:
        machine, train = Machine("cuda", 24 * GIB, host_bytes=host), {"optimizer": optimizer, "batch_size": 1}
        return plan_of(published.LLAMA_3_8B, None, machine, method={"name": "full"}, train=train)

    plan, short = plan_on(64 * GIB), plan_on(8 * GIB)
    assert plan.states_host_bytes == pytest.approx(2 * 8.03e9, rel=0.05)
    assert plan.host_fits
    assert any("paged" in note for note in plan.notes)
    assert short.host_fits is False
    assert any("paged" in note and note.endswith("where 8.6 GB are free.") for note in short.notes)
    assert plan_on(64 * GIB, "adamw_8bit").states_host_bytes == 0


def test_what_was_measured_on_the_device_replaces_what_is_assumed() -> None:
    measured = Calibration("NVIDIA GeForce RTX 4090", 400 << 20, 0.02, "2.13.0", "2026-01-31")

    def parts(**machine: Any) -> dict[str, tuple[int, str]]:
        plan = plan_of(published.LLAMA_3_8B, None, Machine(**machine))
        return {part.name: (part.bytes, part.what) for part in plan.parts}

    assumed, calibrated = parts(kind="cuda"), parts(kind="cuda", calibration=measured)
    assert assumed["runtime"][1].endswith("assumed")
    assert assumed["fragmentation"][1].endswith("assumed")
    assert calibrated["runtime"] == (400 << 20, f"CUDA context and libraries; {measured.source}")
    assert calibrated["fragmentation"][0] == pytest.approx(assumed["fragmentation"][0] / 2, rel=1e-6)
    assert measured.source in calibrated["fragmentation"][1]
    fixed = parts(kind="cuda", expandable=False)
    assert 2 < fixed["fragmentation"][0] / assumed["fragmentation"][0] < 2.5
    assert "do not expand" in fixed["fragmentation"][1]
    on_cpu = parts(kind="cpu", calibration=measured)
    assert on_cpu["runtime"][0] == 400 << 20
    assert measured.source in on_cpu["runtime"][1]


def test_the_fit_of_another_model_is_that_of_its_plan() -> None:
    architecture = STARTER_FACTS.architecture
    assert architecture is not None
    machine = Machine("cpu", 20 * GIB)
    found = fit(architecture, config_of(), machine)
    plan = make_plan(architecture, config_of(), machine)
    assert (found.needed_bytes, found.free_bytes, found.fits) == (plan.needed_bytes, 20 * GIB, True)
    shorter = fit(architecture, config_of(), machine, rows=Rows([(64, 1)])).needed_bytes
    assert shorter is not None
    assert shorter < plan.needed_bytes
    assert fit(architecture, config_of(), Machine("cpu", GIB // 10)).fits is False
    assert fit(architecture, config_of(), Machine("cuda")).fits is None
    assert "architecture is unknown" in fit(None, config_of(), machine).reason
    assert "matches no layer" in fit(architecture, config_of(method={"target_modules": ["none"]}), machine).reason
