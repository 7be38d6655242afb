"""Embedding noise: its place, its strength, and its dependencies."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from core.worker.process.determinism import restore_rng, rng_state
from core.worker.steps import EmbeddingNoise
from tests.cases import cases
from tests.core.worker.steps.stepper import FailingLoss, Stepper, adapted
from tests.core.worker.steps.test_window import WINDOW, assert_alike, make_rows

ALPHA = 40.0


class Noisy(Stepper):
    """Windows of a tiny model that have noise, or have none."""

    def __init__(self, directory: Path, alpha: float | None = ALPHA, fail_at: Collection[int] = ()) -> None:
        loaded = adapted(directory)
        self.noise = EmbeddingNoise(loaded.model, alpha)
        super().__init__(loaded, FailingLoss(loaded.model, fail_at), make_rows(), noise=self.noise)


def added(model: Noisy, rows: list[int], lengths: list[int], ids: torch.Tensor) -> torch.Tensor:
    """The noise added to the embeddings."""
    embeddings = model.model.get_input_embeddings()
    clean = embeddings(ids)
    with model.noise.on(rows, lengths):
        noisy = embeddings(ids)
    assert torch.equal(embeddings(ids), clean)
    difference: torch.Tensor = (noisy - clean).detach()
    return difference


def test_noise_is_uniform_scaled_as_in_the_paper_and_only_on_real_tokens(tiny_model_dir: Path) -> None:
    model = Noisy(tiny_model_dir, alpha=5.0)
    ids = torch.randint(5, 200, (2, 400))
    noise = added(model, [0, 1], [400, 100], ids)
    assert not noise[1, 100:].any()
    hidden = noise.shape[-1]
    for row, length in ((0, 400), (1, 100)):
        limit = 5.0 / (length * hidden) ** 0.5
        part = noise[row, :length]
        assert float(part.abs().max()) <= limit * 1.001
        assert float(part.abs().max()) > 0.99 * limit
        assert float(part.std()) == pytest.approx(limit / 3**0.5, rel=0.02)
        assert abs(float(part.mean())) < 0.02 * limit


def test_training_has_noise(tiny_model_dir: Path) -> None:
    plain, noisy = Noisy(tiny_model_dir, None), Noisy(tiny_model_dir)
    assert abs(noisy.run_anew(WINDOW)[0] - plain.run_anew(WINDOW)[0]) > 1e-4


@cases(("budget", "fail_at"), [(1, ()), (40, ()), (100, ()), (None, {1, 3})])
def test_noise_depends_on_no_cut_and_no_shortage(
    tiny_model_dir: Path, budget: int | None, fail_at: Collection[int]
) -> None:
    whole, cut = Noisy(tiny_model_dir), Noisy(tiny_model_dir, fail_at=fail_at)
    cut.state.token_budget = budget or cut.state.token_budget
    state = rng_state()
    wanted = whole.run_anew(WINDOW)
    restore_rng(state)
    assert_alike(cut.run_anew(WINDOW), wanted)


def test_a_row_that_a_window_has_twice_gets_two_noises(tiny_model_dir: Path) -> None:
    model = Noisy(tiny_model_dir)
    model.noise.begin_window()
    ids = torch.randint(5, 200, (1, 30)).repeat(2, 1)
    noise = added(model, [3, 3], [30, 30], ids)
    assert not torch.equal(noise[0], noise[1])
