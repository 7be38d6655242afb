from __future__ import annotations

import itertools

import pytest

from core.config.document import ConfigDocument
from core.config.facts import Facts, ModelShape
from core.config.presets.library import AIMS, DIRECTORY, Preset, apply_preset, find_preset, presets
from core.config.rules import check_rules
from core.config.schema import Config, sections
from core.errors import UserError

EVERY = list(presets().values())
MINE = '# mine\n[model]\nbase = "m" # my model\n[data]\ntrain = "rows.jsonl"\n'


#: Qwen3-4B, Llama-3.1-8B, Qwen2.5-14B and Qwen2.5-32B, by the smallest size that a preset is for.
LARGE = {
    0: ModelShape(36, 2560, 4096, 1024, 9728, 1, True, 151936, True, 40960, False),
    4.5: ModelShape(32, 4096, 4096, 1024, 14336, 1, True, 128256, False, 131072, False),
    9.5: ModelShape(48, 5120, 5120, 1024, 13824, 1, True, 152064, False, 131072, False),
    16: ModelShape(64, 5120, 5120, 1024, 27648, 1, True, 152064, False, 131072, False),
}
#: CUDA's context and what libraries hold.
CONTEXT = 1.0e9
#: Tokens in one micro-batch on a GPU, where the number of rows is left open.
TOKEN_BUDGET = 8192


def needed_bytes(config: Config, model: ModelShape) -> float:
    """Memory of a step with activations recomputed: weights, adapters with their gradients and optimizer, the input of
    every layer, and one layer in full. NF4 with double quantization takes 4.127 bits a weight."""
    train, method = config.train, config.method
    tables = model.vocabulary * model.hidden * (1 if model.tied else 2)
    linears = model.parameters - tables
    weights = tables * 2 + linears * (4.127 / 8 if method.name == "qlora" else 2)
    adapters = model.adapter_parameters(method.rank) * (16 if train.optimizer == "adamw" else 10)
    rows = train.micro_batch_size or max(TOKEN_BUDGET // train.max_length, 1)
    tokens = rows * train.max_length
    kept = model.layers * tokens * model.hidden * 2
    layer = 1.25 * 2 * tokens * (model.hidden + 2 * model.keys + 2 * model.intermediate)
    copies = 4 * tokens * (3 * model.hidden + model.queries + 2 * model.hidden + model.intermediate)
    return weights + adapters + kept + layer + copies + CONTEXT


def configured(preset: Preset) -> ConfigDocument:
    document = ConfigDocument(MINE)
    apply_preset(document, preset)
    return document


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_a_preset_makes_a_configuration_without_objections(preset: Preset) -> None:
    document = configured(preset)
    config = document.validate()
    assert check_rules(config) == []
    for name, value in preset.values.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(config, section), key) == value
    assert config.model.base == "m"
    assert document.dumps().startswith(MINE.rstrip())


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_a_preset_names_no_model_and_no_data_and_says_what_it_is_for(preset: Preset) -> None:
    touched = {name.partition(".")[0] for name in preset.values}
    assert touched <= set(sections()) - {"model", "data", "template", "hardware", "chat"}
    assert preset.about.endswith(".")
    assert preset.aim in AIMS
    assert preset.name.startswith(f"{preset.memory_gb}gb-" if preset.memory_gb else "cpu-")
    assert preset.name.endswith(preset.aim) or preset.aim == "balanced"
    assert preset.parameters[0] < preset.parameters[1]
    assert set(preset.notes) <= set(preset.values)
    of_adapters = {"method.rank", "method.alpha"} if preset.values["method.name"] in ("lora", "qlora") else set()
    assert {"train.max_length", "method.name"} | of_adapters <= set(preset.values)
    assert ("train.max_steps" in preset.values) != ("train.epochs" in preset.values)


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_a_preset_fits_its_card(preset: Preset) -> None:
    """By the arithmetic of QLoRA and LoRA, for a large model among those that the preset is for."""
    if preset.memory_gb:
        config = configured(preset).validate()
        assert needed_bytes(config, LARGE[preset.parameters[0]]) <= 0.95 * preset.memory_gb * (1 << 30)


def test_every_card_and_every_size_is_served() -> None:
    served = {(preset.memory_gb, preset.parameters[0]) for preset in EVERY if preset.aim == "balanced"}
    assert {gb for gb, _ in served} == {0, 8, 12, 16, 24}
    assert {(24, 0), (24, 4.5), (24, 9.5), (24, 16)} <= served
    assert {preset.aim for preset in EVERY} == set(AIMS)
    assert {path.stem for path in DIRECTORY.glob("*.toml")} == set(presets())


def test_more_memory_asks_for_no_less() -> None:
    """Of two balanced presets for the same size, the one for the larger card takes rows that are at least as long."""
    balanced = [preset for preset in EVERY if preset.aim == "balanced" and preset.memory_gb]
    for less, more in itertools.combinations(balanced, 2):
        if less.memory_gb < more.memory_gb and less.parameters[0] == more.parameters[0]:
            assert less.values["train.max_length"] <= more.values["train.max_length"]
            assert less.values["method.rank"] <= more.values["method.rank"]


def test_quick_looks_end_and_long_contexts_are_longer() -> None:
    for preset in EVERY:
        if preset.aim == "quick-look":
            assert preset.values["train.max_steps"] <= 60
        if preset.aim == "long-context":
            balanced = find_preset(preset.name.removesuffix("-long-context"))
            assert preset.values["train.max_length"] >= 2 * balanced.values["train.max_length"]


def test_what_the_user_wrote_stays_where_that_is_asked() -> None:
    preset = find_preset("24gb-7b-quick-look")
    document = ConfigDocument(MINE + "[train]\nepochs = 2.0\n[method]\nrank = 4\n")
    changed = apply_preset(document, preset, keep_written=True)
    config = document.validate()
    # max_steps would make the epochs meaningless, and alpha belongs to the rank.
    assert (config.train.epochs, config.train.max_steps) == (2.0, None)
    assert (config.method.rank, config.method.alpha) == (4, 32.0)
    assert config.train.max_length == preset.values["train.max_length"]
    assert set(changed).isdisjoint({"train.epochs", "train.max_steps", "method.rank", "method.alpha"})


def test_a_preset_replaces_what_would_contradict_it() -> None:
    document = ConfigDocument(MINE + "[train]\nepochs = 2.0 # twice\nseed = 7\n")
    apply_preset(document, find_preset("24gb-7b-quick-look"))
    config = document.validate()
    assert document.get("train.epochs") is None
    assert (config.train.max_steps, config.train.seed) == (60, 7)
    apply_preset(document, find_preset("24gb-7b"))
    assert document.get("train.max_steps") is None
    assert document.remarks(Facts()) == []


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_preset("24g-7b")
    assert "There is no preset 24g-7b." in str(caught.value)
    assert "Did you mean 24gb-7b?" in caught.value.hint
    with pytest.raises(UserError, match="cpu-small"):
        find_preset("\x1b")
