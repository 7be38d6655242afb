"""Measured memory at a size of a micro-batch, and its form in JSON."""

from __future__ import annotations

import json

import pytest

from core.models.architecture.measuring import (
    Growth,
    LayerGrowth,
    Passes,
    Regime,
    passes_from_dict,
    passes_to_dict,
)
from tests.cases import cases


def passes() -> Passes:
    layer = LayerGrowth(0, True, 1, Growth(1, 2, 3), Growth(), (Growth(4),), (Growth(5),), (Growth(6), Growth(0, 7)))
    short = Regime(256, Growth(8), Growth(), Growth(9), (Growth(10),), (layer,))
    longer = Regime(None, Growth(11), Growth(), Growth(12), (Growth(13),), (layer,))
    return Passes((0, 0), (short, longer), ((8, 64, 2),), (("q_proj", 2),), 0)


def test_passes_come_back_from_json_as_they_were() -> None:
    made = passes()
    assert passes_from_dict(json.loads(json.dumps(passes_to_dict(made)))) == made
    assert made.regime(256) is made.regimes[0]
    assert made.regime(257) is made.regimes[1]
    # Only the case that was measured is there.
    assert made.regimes[0].layer(0, reached=False).reached


@cases("damage", ["kinds", "regimes", "trained", "empty", "foreign"])
def test_passes_that_are_not_whole_are_refused(damage: str) -> None:
    values = passes_to_dict(passes())
    if damage == "empty":
        values["regimes"] = []
    elif damage == "foreign":
        values["kinds"] = [0, 1]
    else:
        del values[damage]
    with pytest.raises(ValueError):
        passes_from_dict(values)
