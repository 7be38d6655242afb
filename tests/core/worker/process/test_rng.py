"""The state of random generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from core.worker.process.rng import restore_rng, rng_state


def test_the_random_state_of_all_generators_is_put_back() -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(2).tolist(), np.random.standard_normal(), random.gauss(0, 1)

    draw()
    before = rng_state()
    first = draw()
    draw()
    restore_rng(before)
    assert draw() == first
