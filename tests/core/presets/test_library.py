from __future__ import annotations

import pytest

from core.config.choices import AIMS
from core.config.document import ConfigDocument
from core.config.rules.check import check_rules
from core.config.schema import sections
from core.errors import UserError
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models.architecture.architecture import read_architecture
from core.presets.library import DIRECTORY, Preset, fill_in, find_preset, presets
from tests.cases import cases
from tests.core.models.architecture import published

EVERY = list(presets().values())
MINE = '# mine\n[model]\nbase = "m" # my model\n[data]\ntrain = "rows.jsonl"\n'


#: A large model that a preset is meant for, by the smallest size of its range.
MEANT = {0: published.QWEN_3_4B, 4.5: published.LLAMA_3_1_8B, 9.5: published.QWEN_2_5_14B, 16: published.QWEN_2_5_32B}
#: The free share of a card at least: a tenth, of which error correction may take 6 of 100 and a desktop the rest.
MARGIN = 0.1


def configured(preset: Preset) -> ConfigDocument:
    document = ConfigDocument(MINE)
    fill_in(document, preset)
    return document


@cases("preset", EVERY, ids=lambda preset: preset.name)
def test_a_preset_makes_a_configuration_without_objections_and_says_what_it_is_for(preset: Preset) -> None:
    document = configured(preset)
    config = document.validate()
    assert check_rules(config) == []
    for name, value in preset.values.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(config, section), key) == value
    assert config.model.base == "m"
    assert document.dumps().startswith(MINE.rstrip())
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


@cases("preset", [preset for preset in EVERY if preset.memory_gb], ids=lambda preset: preset.name)
def test_a_preset_fits_its_card_by_the_memory_plan(preset: Preset) -> None:
    """With rows as long as it takes, all of them learned, and a margin."""
    model = read_architecture(MEANT[preset.parameters[0]], preset.name)
    assert preset.parameters[0] <= model.parameters / 1e9 <= preset.parameters[1]
    config = configured(preset).validate()
    plan = make_plan(model, config, Machine("cuda", round((1 - MARGIN) * preset.memory_gb * (1 << 30))))
    assert plan.micro_batch.length == config.train.max_length
    assert plan.fits


@pytest.mark.parametrize("preset", [preset for preset in EVERY if not preset.memory_gb], ids=lambda preset: preset.name)
def test_a_preset_for_the_cpu_fits_into_a_small_machine(preset: Preset) -> None:
    """The starter model in 4 GB, a model of half a billion parameters in 8 GB."""
    for model, memory in ((published.SMOLLM2_135M, 4), (published.QWEN_2_5_05B, 8)):
        config = configured(preset).validate()
        plan = make_plan(read_architecture(model, "m"), config, Machine("cpu", memory << 30, bf16=False))
        assert plan.fits


def test_every_card_and_every_size_is_served() -> None:
    served = {(preset.memory_gb, preset.parameters[0]) for preset in EVERY if preset.aim == "balanced"}
    assert {gb for gb, _ in served} == {0, 8, 12, 16, 24}
    assert {(24, 0), (24, 4.5), (24, 9.5), (24, 16)} <= served
    assert {preset.aim for preset in EVERY} == set(AIMS)
    assert {path.stem for path in DIRECTORY.glob("*.toml")} == set(presets())


def test_what_the_user_wrote_stays_where_that_is_asked() -> None:
    preset = find_preset("24gb-7b-quick-look")
    document = ConfigDocument(MINE + "[train]\nepochs = 2.0\n[method]\nrank = 4\n")
    changed = fill_in(document, preset)
    config = document.validate()
    # max_steps would make the epochs meaningless, and alpha belongs to the rank.
    assert (config.train.epochs, config.train.max_steps) == (2.0, None)
    assert (config.method.rank, config.method.alpha) == (4, 32.0)
    assert config.train.max_length == preset.values["train.max_length"]
    assert set(changed).isdisjoint({"train.epochs", "train.max_steps", "method.rank", "method.alpha"})


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_preset("24g-7b")
    assert "There is no preset 24g-7b." in str(caught.value)
    assert "Did you mean 24gb-7b?" in caught.value.hint
    with pytest.raises(UserError, match="cpu-small"):
        find_preset("\x1b")
