from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.worker.data.batches import HostBatch
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import Packing
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import trainable_parameters
from core.worker.oom.retry import MemoryShortageError, TornUpdateError
from core.worker.process.determinism import rng_state
from tests.cases import cases
from tests.core.worker.steps.stepper import Stepper, adapted

WINDOW = [0, 1, 2, 3, 4, 5, 6, 7]


def make_rows(count: int = 8) -> list[TokenizedRow]:
    random = np.random.default_rng(0)
    rows = []
    for length in random.integers(5, 40, count):
        supervised = random.random(length) < 0.5
        supervised[-1] = True
        rows.append(TokenizedRow(random.integers(5, 250, length).astype(np.int32), supervised))
    return rows


class FailingLoss(SupervisedLoss):
    """Raises torch's own out-of-memory error at chosen calls, or for every batch beyond so many tokens."""

    def __init__(self, model: Any, fail_at: set[int], max_tokens: int = 10_000) -> None:
        super().__init__(model)
        self.calls = 0
        self.fail_at = fail_at
        self.max_tokens = max_tokens
        self.sizes: list[int] = []

    def hidden(
        self,
        input_ids: torch.Tensor,
        supervised: torch.Tensor,
        *,
        most_shared: int | None = None,
        host: HostBatch | None = None,
    ) -> torch.Tensor:
        self.calls += 1
        if self.calls in self.fail_at or input_ids.numel() > self.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(input_ids.numel())
        return super().hidden(input_ids, supervised, most_shared=most_shared, host=host)


class Setup:
    def __init__(self, directory: Path, *, dropout: float = 0.0, **failing: Any) -> None:
        self.loaded = adapted(directory, dropout=dropout)
        self.loss = FailingLoss(self.loaded.model, failing.get("fail_at", set()), failing.get("max_tokens", 10_000))
        self.notices: list[str] = []
        self.windows = Stepper(
            self.loaded,
            self.loss,
            make_rows(),
            notice=lambda code, _message, _hint: self.notices.append(code),
            partial=failing.get("partial", lambda: False),
        )

    def gradient(self) -> torch.Tensor:
        grads = [parameter.grad for parameter in trainable_parameters(self.loaded.model)]
        return torch.cat([grad.flatten() for grad in grads if grad is not None])


@cases("budget", [1, 40, 100, 200])
def test_loss_and_gradients_do_not_depend_on_the_cut(tiny_model_dir: Path, budget: int) -> None:
    whole, cut = Setup(tiny_model_dir), Setup(tiny_model_dir)
    cut.windows.state.token_budget = budget
    first, second = whole.windows.run(WINDOW, where="step 1"), cut.windows.run(WINDOW, where="step 1")
    assert whole.loss.calls == 1
    assert cut.loss.calls > 1
    assert second.loss == pytest.approx(first.loss, abs=1e-6)
    assert (first.tokens, first.supervised_tokens) == (second.tokens, second.supervised_tokens)
    torch.testing.assert_close(cut.gradient(), whole.gradient(), atol=1e-6, rtol=1e-4)


@cases("fail_at", [{1}, {2}, {1, 2}])
def test_a_window_that_ran_out_of_memory_is_run_again_in_smaller_pieces(
    tiny_model_dir: Path, fail_at: set[int]
) -> None:
    calm, failing = Setup(tiny_model_dir), Setup(tiny_model_dir, fail_at=fail_at)
    for setup in (calm, failing):
        setup.windows.state.token_budget = 200
    wanted = calm.windows.run(WINDOW, where="step 1")
    result = failing.windows.run(WINDOW, where="step 1")
    assert failing.notices == ["memory_cut"] * len(fail_at)
    assert result.loss == pytest.approx(wanted.loss, abs=1e-6)
    assert result.supervised_tokens == wanted.supervised_tokens
    torch.testing.assert_close(failing.gradient(), calm.gradient(), atol=1e-6, rtol=1e-4)
    before = failing.windows.state.token_budget
    failing.windows.run(WINDOW, where="step 2")
    assert failing.windows.state.token_budget == before, "the smaller size is kept"


def test_the_random_state_is_put_back_before_the_second_try(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir, dropout=0.5, fail_at={2})
    setup.windows.state.token_budget = 40
    torch.manual_seed(7)
    setup.windows.run(WINDOW, where="step 1")
    state_after, budget = rng_state()["torch"], setup.windows.state.token_budget
    calm = Setup(tiny_model_dir, dropout=0.5)
    calm.windows.state.token_budget = budget
    torch.manual_seed(7)
    calm.windows.run(WINDOW, where="step 1")
    assert torch.equal(rng_state()["torch"], state_after)
    assert torch.equal(calm.gradient(), setup.gradient())


def test_a_row_that_does_not_fit_turns_checkpointing_on_and_then_ends_the_run(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir, max_tokens=0)
    with pytest.raises(UserError, match=r"single row of \d+ tokens") as caught:
        setup.windows.run(WINDOW, where="step 3")
    assert setup.windows.state.checkpointing
    assert setup.windows.state.kept_layers == 0
    # The activations of half of its layers, and then of none, are kept.
    assert setup.notices[-2:] == ["memory_checkpointing"] * 2
    assert "train.max_length" in caught.value.hint


@cases("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryShortageError("three times", "")])
def test_a_window_that_has_changed_weights_is_not_run_again(tiny_model_dir: Path, error: Exception) -> None:
    """Inside backward the optimizer, too, may be what runs out of memory, after some tries of its own."""
    updated: list[bool] = []
    setup = Setup(tiny_model_dir, partial=lambda: bool(updated))

    def update_and_fail(_: torch.Tensor) -> None:
        updated.append(True)
        raise error

    hooked: Any = trainable_parameters(setup.loaded.model)[-1]
    hooked.register_post_accumulate_grad_hook(update_and_fail)
    with pytest.raises(TornUpdateError, match="Memory ran out at step 3, when a part of the weights"):
        setup.windows.run(WINDOW, where="step 3")
    assert updated == [True]
    assert all(parameter.grad is None for parameter in trainable_parameters(setup.loaded.model))


def test_the_rehearsal_finds_the_size_and_leaves_no_trace(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir, dropout=0.5, max_tokens=90)
    before = rng_state()["torch"]
    rows, length = setup.windows.rehearse(8)
    assert rows == 2
    assert length == max(len(row) for row in make_rows())
    assert torch.equal(rng_state()["torch"], before)
    assert all(parameter.grad is None for parameter in trainable_parameters(setup.loaded.model))
    setup.windows.run(WINDOW, where="step 1")
    assert max(setup.loss.sizes) <= 90


def test_a_window_with_the_longest_rows_is_a_rehearsal(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir)
    lengths = [len(row) for row in make_rows()]
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    assert setup.windows.micro_batches.has_largest(longest[:3], 3)
    assert not setup.windows.micro_batches.has_largest(longest[-3:], 3)
    assert not setup.windows.micro_batches.has_largest(longest[:2], 3)


def test_a_window_that_shares_more_than_others_is_no_rehearsal(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir)
    alike = np.arange(5, 45, dtype=np.int32)
    learned = np.arange(40) >= 35
    rows = [TokenizedRow(np.concatenate([alike[:30], alike[:10] + end]), learned) for end in range(4)]
    rows += [TokenizedRow(row.input_ids + end, learned) for end, row in enumerate(rows, start=50)]
    windows = Stepper(
        setup.loaded,
        SupervisedLoss(setup.loaded.model, Packing(share=True)),
        rows,
        notice=lambda *_: None,
    )
    assert not windows.micro_batches.has_largest(range(4), 4), "these share 30 tokens"
    assert windows.micro_batches.has_largest(range(4, 8), 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tiny_model_dir)

    def broken(*_: torch.Tensor, **_options: int | None) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(setup.loss, "hidden", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        setup.windows.run(WINDOW, where="step 1")
