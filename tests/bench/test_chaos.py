"""The program that kills runs at random moments and measures the loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import chaos

pytestmark = pytest.mark.long


def test_a_run_that_is_killed_at_random_moments_ends_bit_equal(tmp_path: Path) -> None:
    """Five kills; ``python bench/chaos.py --kills 1000`` for more."""
    found = chaos.measure(tmp_path, kills=5, steps=24, seed=5)
    assert found["bit_equal"] == {"adapter": True, "optimizer": True, "losses": True}
    assert found["kills"] == sum(found["phases"].values()) == 5
    assert found["checkpoints_damaged"] == 0
    assert found["steps_lost"]["most"] <= 3


def test_a_run_of_two_processes_that_loses_one_of_them_ends_bit_equal(tmp_path: Path) -> None:
    found = chaos.measure(tmp_path, kills=2, steps=12, seed=5, ranks=2)
    assert found["bit_equal"] == {"adapter": True, "optimizer": True, "losses": True}
    assert found["kills"] == sum(found["phases"].values()) == 2
    assert found["checkpoints_damaged"] == 0
