from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import Packing
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import trainable_parameters
from core.worker.oom.retry import MemoryShortageError, TornUpdateError
from core.worker.process.determinism import rng_state
from tests.cases import cases
from tests.core.worker.steps.stepper import FailingLoss, Stepper, adapted

WINDOW = [0, 1, 2, 3, 4, 5, 6, 7]


def make_rows() -> list[TokenizedRow]:
    random = np.random.default_rng(0)
    rows = []
    for length in random.integers(5, 40, 8):
        supervised = random.random(length) < 0.5
        supervised[-1] = True
        rows.append(TokenizedRow(random.integers(5, 250, length).astype(np.int32), supervised))
    return rows


class Windows(Stepper):
    """Steps over :func:`make_rows`, whose loss may fail."""

    def __init__(
        self,
        directory: Path,
        *,
        dropout: float = 0.0,
        fail_at: Collection[int] = (),
        max_tokens: int = 10_000,
        **options: Any,
    ) -> None:
        loaded = adapted(directory, dropout=dropout)
        self.loss = FailingLoss(loaded.model, fail_at, max_tokens)
        super().__init__(loaded, self.loss, make_rows(), **options)


def assert_alike(found: tuple[float, torch.Tensor], wanted: tuple[float, torch.Tensor]) -> None:
    """Loss and gradient of two windows are equal but for rounding."""
    assert found[0] == pytest.approx(wanted[0], abs=1e-6)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-6, rtol=1e-4)


@cases("budget", [1, 40, 100, 200])
def test_loss_and_gradients_do_not_depend_on_the_cut(tiny_model_dir: Path, budget: int) -> None:
    steps = Windows(tiny_model_dir)
    first = steps.run(WINDOW)
    wanted = first.loss, steps.gradient()
    steps.state.token_budget = budget
    steps.model.zero_grad()
    second = steps.run(WINDOW)
    assert steps.loss.calls > 2, "it was cut"
    assert_alike((second.loss, steps.gradient()), wanted)
    assert (first.tokens, first.supervised_tokens) == (second.tokens, second.supervised_tokens)


@cases("fail_at", [{1}, {2}, {1, 2}])
def test_a_window_that_ran_out_of_memory_runs_again_in_smaller_pieces(tiny_model_dir: Path, fail_at: set[int]) -> None:
    calm, failing = Windows(tiny_model_dir), Windows(tiny_model_dir, fail_at=fail_at)
    for steps in (calm, failing):
        steps.state.token_budget = 200
    assert_alike(failing.run_anew(WINDOW), calm.run_anew(WINDOW))
    assert failing.notices == ["memory_cut"] * len(fail_at)
    before = failing.state.token_budget
    failing.run(WINDOW)
    assert failing.state.token_budget == before, "the smaller size is kept"


def test_the_random_state_is_put_back_before_the_second_try(tiny_model_dir: Path) -> None:
    steps = Windows(tiny_model_dir, dropout=0.5, fail_at={2})
    steps.state.token_budget = 40
    torch.manual_seed(7)
    _, gradient = steps.run_anew(WINDOW)
    state_after = rng_state()["torch"]
    calm = Windows(tiny_model_dir, dropout=0.5)
    calm.state.token_budget = steps.state.token_budget
    torch.manual_seed(7)
    assert torch.equal(calm.run_anew(WINDOW)[1], gradient)
    assert torch.equal(rng_state()["torch"], state_after)


def test_a_row_that_does_not_fit_turns_checkpointing_on_and_then_ends_the_run(tiny_model_dir: Path) -> None:
    steps = Windows(tiny_model_dir, max_tokens=0)
    with pytest.raises(UserError, match=r"single row of \d+ tokens") as caught:
        steps.run(WINDOW)
    assert (steps.state.checkpointing, steps.state.kept_layers) == (True, 0)
    # The activations of half of its layers, and then of none, are kept.
    assert steps.notices[-2:] == ["memory_checkpointing"] * 2
    assert "train.max_length" in caught.value.hint


@cases("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryShortageError("three times", "")])
def test_a_window_that_has_changed_weights_is_not_run_again(tiny_model_dir: Path, error: Exception) -> None:
    """Inside backward the optimizer, too, may be what runs out of memory, after some tries of its own."""
    updated: list[bool] = []
    steps = Windows(tiny_model_dir, partial=lambda: bool(updated))

    def update_and_fail(_: torch.Tensor) -> None:
        updated.append(True)
        raise error

    hooked: Any = trainable_parameters(steps.model)[-1]
    hooked.register_post_accumulate_grad_hook(update_and_fail)
    with pytest.raises(TornUpdateError, match="Memory ran out at step 3, when a part of the weights"):
        steps.run(WINDOW, where="step 3")
    assert updated == [True]
    assert all(parameter.grad is None for parameter in trainable_parameters(steps.model))


def test_the_rehearsal_finds_the_size_and_leaves_no_trace(tiny_model_dir: Path) -> None:
    steps = Windows(tiny_model_dir, dropout=0.5, max_tokens=90)
    before = rng_state()["torch"]
    assert steps.rehearse(8) == (2, max(len(row) for row in make_rows()))
    assert torch.equal(rng_state()["torch"], before)
    assert all(parameter.grad is None for parameter in trainable_parameters(steps.model))
    steps.run(WINDOW)
    assert max(steps.loss.sizes) <= 90


def test_a_window_with_the_longest_rows_is_a_rehearsal(tiny_model_dir: Path) -> None:
    micro_batches = Windows(tiny_model_dir).micro_batches
    lengths = [len(row) for row in make_rows()]
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    assert micro_batches.has_largest(longest[:3], 3)
    assert not micro_batches.has_largest(longest[-3:], 3)
    assert not micro_batches.has_largest(longest[:2], 3)


def test_a_window_that_shares_more_than_others_is_no_rehearsal(tiny_model_dir: Path) -> None:
    loaded = adapted(tiny_model_dir)
    alike = np.arange(5, 45, dtype=np.int32)
    learned = np.arange(40) >= 35
    rows = [TokenizedRow(np.concatenate([alike[:30], alike[:10] + end]), learned) for end in range(4)]
    rows += [TokenizedRow(row.input_ids + end, learned) for end, row in enumerate(rows, start=50)]
    micro_batches = Stepper(loaded, SupervisedLoss(loaded.model, Packing(share=True)), rows).micro_batches
    assert not micro_batches.has_largest(range(4), 4), "these share 30 tokens"
    assert micro_batches.has_largest(range(4, 8), 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Windows(tiny_model_dir)

    def broken(*_: torch.Tensor, **_options: int | None) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(steps.loss, "hidden", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        steps.run(WINDOW)
