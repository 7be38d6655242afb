"""Every family that people tune, tried whole: loaded, planned, trained, killed and continued, asked."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import ChatRequest, GenerationSettings
from core.config.targets import stays_16bit
from core.memory.plan import Machine
from core.memory.planner import arithmetic
from core.memory.weights import weight_parts
from core.models.architecture.measuring import load_architecture
from tests.core.template.families import MODEL_FAMILIES
from tests.core.template.test_mask import expected_turns, learned_turns, mask
from tests.core.template.test_model_families import sample
from tests.e2e.workers import adapter_bytes, steps
from tests.families import forked, looks
from tests.families.conftest import ANSWER, STEPS, Trained, Tried
from tests.families.tiny import FAMILIES

#: Families whose models have the templates of another.
TEMPLATES = {
    "qwen3_moe": "qwen3",
    "qwen3_5_moe": "qwen3_5",
    "gemma4_moe": "gemma4",
    "lfm2_moe": "lfm2",
    "granitemoehybrid_dense": "granitemoehybrid",
}
#: Rows of the smallest matrix of these models that neither chooses nor is a gate.
FEWEST_ROWS = 16
#: Parts of the plan that are weights of the base.
WEIGHTS = ("linear_weights", "linear_16bit", "experts", "experts_16bit", "routers", "embeddings", "norms")


def test_in_16_bit_it_is_the_model_that_transformers_loads(trained: Trained, tried: Tried) -> None:
    compared = trained.call(looks.compared, "lora")
    assert compared.changed == ()
    assert compared.differs < 1e-5
    found = compared.weights
    assert not found.in_4bit
    alone = "its tower too" if found.towers else "its text part alone" if FAMILIES[trained.name].sees else ""
    tried("16 bit", f"yes, {alone}" if alone else "yes")


def test_in_4_bits_all_is_quantized_but_what_chooses(trained: Trained, tried: Tried) -> None:
    """Bit-equal to bitsandbytes' result; unquantized tensors equal the file's."""
    compared = trained.call(looks.compared, "qlora")
    assert compared.changed == ()
    found = compared.weights
    assert found.in_4bit
    assert all(stays_16bit(name) for name in found.linear_16bit if not found.towers), found.linear_16bit
    assert not [name for name in found.in_4bit if stays_16bit(name.removesuffix(".weight")) or "lm_head" in name]
    # A router has a row for each expert, a gate one or one for each head.
    assert min(shape[0] for shape in found.in_4bit.values() if len(shape) == 2) >= FEWEST_ROWS
    kept = ["its experts"] * bool(found.experts_16bit) + ["its tower"] * bool(found.towers)
    tried("4 bit", f"yes, not {' and '.join(kept)}" if kept else "yes")


def test_weights_match_the_plan_to_the_byte(trained: Trained, tried: Tried) -> None:
    architecture = load_architecture(trained.base)
    for method in ("lora", "qlora"):
        found = trained.call(looks.weights, method, "bf16")
        config = trained.config.with_options(method={"name": method}, train={"precision": "bf16"})
        parts = weight_parts(architecture, arithmetic(config, Machine("cpu")), copied=0)
        assert architecture.parameters == found.parameters
        assert sum(part.bytes for part in parts if part.name in WEIGHTS) == found.bytes, method
    tried("plan", "yes")


def test_twenty_steps_lower_the_loss(trained: Trained, tried: Tried) -> None:
    losses = [step.loss for step in steps(trained.whole)]
    assert len(losses) == STEPS
    # Of random weights: the head of these models cannot say one token with certainty.
    assert losses[-1] < losses[0] - 0.5
    tried("trains", "yes")


def test_killed_in_a_step_and_continued_it_ends_as_if_nothing_had_been(trained: Trained, tried: Tried) -> None:
    run, code = forked.begin(trained.config, trained.home, "killed", dies_in_step=13)
    assert code == -signal.SIGKILL, (run.path / "worker.log").read_text()[-4000:]
    assert run.state().state == "lost"
    assert forked.resume(run, trained.home) == 0
    assert adapter_bytes(run) == adapter_bytes(trained.whole)
    losses = {step.step: step.loss for step in steps(run)}
    assert losses == {step.step: step.loss for step in steps(trained.whole)}
    tried("resume", "yes")


def test_fast_paths_give_the_gradients_of_the_plain_model(trained: Trained, tried: Tried) -> None:
    for name in ("lora", "qlora"):
        method = {"name": name, **trained.experts}
        plain = trained.call(looks.gradients, method, {"fused_layers": False, "share_prefix": False})
        assert (plain.fused, plain.shared) == ((), False)
        fast = packed = trained.call(looks.gradients, method, {})
        if name == "qlora":
            # How rows are laid out has nothing to do with how weights are kept.
            packed = trained.call(looks.gradients, method, {"packing": True, "share_prefix": False})
        for found in (fast, packed):
            assert found.loss == pytest.approx(plain.loss, rel=1e-4)
            differs = np.linalg.norm(found.gradients - plain.gradients) / np.linalg.norm(plain.gradients)
            assert differs <= 1e-4, (name, found.fused, found.refused)
    missing = [part for part in looks.PARTS if part not in fast.fused]
    tried("fast paths", f"all but {', '.join(missing)}" if missing else "all")
    reason = packed.refused.partition(": ")[2].partition(", which")[0].rstrip(".")
    tried("packing", f"refused: {reason}" if reason else "yes, beginnings shared" if fast.shared else "yes")


def test_base_and_tuned_answer_in_the_chat(trained: Trained, engine: ChatEngine, tried: Tried) -> None:
    spec = ModelSpec(str(trained.base), str(trained.whole.adapter_path), method="qlora", precision="fp32", device="cpu")
    engine.load(spec, lambda _detail, _done, _total: None)
    answers = {}
    for source in ("tuned", "base"):
        request = ChatRequest([{"role": "user", "content": "the area"}], source, GenerationSettings(12))
        *_, answers[source] = engine.generate(request)
    assert answers["tuned"]["text"] == ANSWER
    assert answers["tuned"]["finish"] == "stop"
    assert answers["base"]["text"] != ANSWER
    assert answers["base"]["tokens"] > 0
    tried("chat", "yes")


def test_learned_is_what_must_be_generated_with_the_templates_of_its_models(trained: Trained, tried: Tried) -> None:
    models = MODEL_FAMILIES[TEMPLATES.get(trained.name, trained.name)]
    for model in models:
        for thinking in (None, "on", "off") if model.switch else (None,):
            example = sample(model, thinking)
            found = learned_turns(mask(model.told(thinking), example))
            assert sorted(found) == sorted(expected_turns(model.told(thinking), example)), (model, thinking)
    also = {"reasoning": any(model.reasoning for model in models), "tools": any(model.tools for model in models)}
    with_them = [what for what, is_there in also.items() if is_there]
    tried("mask", f"yes, with {' and '.join(with_them)}" if with_them else "yes")
