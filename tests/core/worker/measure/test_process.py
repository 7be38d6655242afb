"""The process that measures, and the cache of its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.architecture import measuring
from core.models.architecture.architecture import Unmeasured
from core.models.architecture.measuring import (
    GivenUpError,
    Growth,
    LayerGrowth,
    Passes,
    Regime,
    measure_architecture,
    passes_from_dict,
    telling,
    to_json,
)
from core.paths import home
from tests.cases import cases
from tests.families.tiny import FAMILIES
from tests.measured_here import usual_directory


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_remembered", {})
    monkeypatch.setattr(measuring, "_directory", usual_directory)


def model(**changes: Any) -> Unmeasured:
    return Unmeasured(json.dumps(FAMILIES["lfm2"].config().to_dict() | changes, default=str), "a model")


def cached() -> list[Path]:
    return sorted((home() / "cache" / "measured").glob("*.json"))


@pytest.mark.long
@pytest.mark.anew
def test_a_process_that_imports_its_libraries_behind_walls_measures() -> None:
    assert measure_architecture(model()).family == "lfm2"


def test_a_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    with telling(lambda activity, seconds: told.append((activity, seconds))):
        found = measure_architecture(model())
    assert (found.family, found.depth, found.hidden, found.vocabulary) == ("lfm2", 3, 64, 320)
    assert told
    assert told[-1][1] > told[0][1]
    (path,) = cached()
    runs: list[dict[str, Any]] = []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        runs.append(job)
        return {"architecture": json.loads(whole)["value"]}

    whole = path.read_text()
    monkeypatch.setattr(measuring, "_run", run)
    assert measure_architecture(model()) == found
    measuring._remembered.clear()
    assert measure_architecture(model()) == found
    assert not runs
    foreign = json.dumps({"key": "0" * 32, "value": json.loads(whole)["value"]})
    for content in (whole[: len(whole) // 2], foreign, "[]", ""):
        measuring._remembered.clear()
        runs.clear()
        path.write_text(content)
        assert measure_architecture(model()) == found
        assert len(runs) == 1
        assert json.loads(path.read_text()) == json.loads(whole)


def test_another_configuration_or_version_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        measuring._key({"description": model(**change).description}, "architecture")
        for change in ({}, {"hidden_size": 128})
    }
    monkeypatch.setattr(measuring, "version_of", lambda _name: "0")
    keys.add(measuring._key({"description": model().description}, "architecture"))
    assert len(keys) == 3


@cases(
    ("description", "words"),
    [
        ({"model_type": "of_tomorrow", "hidden_size": 8}, "of the family of_tomorrow, and its memory cannot"),
        ({"model_type": "siglip_vision_model"}, "not a causal language model"),
        ({"model_type": "lfm2", "hidden_size": "wide"}, "be measured: Validation error for field 'hidden_size': "),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(description: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        measure_architecture(Unmeasured(json.dumps(description), "a model"))
    assert raised.value.hint
    assert "\n" not in raised.value.message
    assert not cached()


def test_infinity_in_the_form_of_transformers_is_read() -> None:
    described = FAMILIES["granitemoehybrid"].config().to_dict()
    described["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    assert measure_architecture(Unmeasured(json.dumps(described, default=str), "a model")).depth == 3


@pytest.mark.anew
def test_a_process_without_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MEMORY", 64 << 20)
    with pytest.raises(UserError, match="measure") as raised:
        measure_architecture(model())
    assert raised.value.hint


def test_who_waits_may_give_up() -> None:
    with pytest.raises(GivenUpError), telling(is_wanted=lambda: False):
        measure_architecture(model())
    assert not cached()


def passes() -> Passes:
    layer = LayerGrowth(0, True, 1, Growth(1, 2, 3), Growth(), (Growth(4),), (Growth(5),), (Growth(6), Growth(0, 7)))
    short = Regime(256, Growth(8), Growth(), Growth(9), (Growth(10),), (layer,))
    longer = Regime(None, Growth(11), Growth(), Growth(12), (Growth(13),), (layer,))
    return Passes((0, 0), (short, longer), ((8, 64, 2),), (("q_proj", 2),), 0)


def test_passes_come_back_from_json_as_they_were() -> None:
    made = passes()
    assert passes_from_dict(json.loads(json.dumps(to_json(made)))) == made
    assert made.regime(256) is made.regimes[0]
    assert made.regime(257) is made.regimes[1]
    # Only the case that was measured is there.
    assert made.regimes[0].layer(0, reached=False).reached


@cases("damage", ["kinds", "regimes", "trained", "empty", "foreign"])
def test_passes_that_are_not_whole_are_refused(damage: str) -> None:
    values = to_json(passes())
    if damage == "empty":
        values["regimes"] = []
    elif damage == "foreign":
        values["kinds"] = [0, 1]
    else:
        del values[damage]
    with pytest.raises(ValueError):
        passes_from_dict(values)
