"""DeepSpeed on two processes against one: each stage, offload, checkpoints that know nothing of processes, steps that
are dropped, and memory that runs out in one of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core import deepspeed
from core.runs.record.events import StepEvent
from core.runs.record.store import Run
from core.worker.distributed.ranks import Ranks
from core.worker.evaluate.evaluate import Evaluator
from core.worker.model.model import decoder_layers
from core.worker.progress.health import FiniteCheck
from tests.cases import cases

from .pairs import run_pair
from .trainings import FULL, Trained, Trainings, ask_both, largest_difference, options_of, result, write_rows

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not deepspeed.is_installed(), reason="DeepSpeed is not installed; see docs/several-cards.md"),
]

#: Runs by name: stage, offload, and other options.
RUNS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "adapters-2": (2, "none", {}),
    "full-1": (1, "none", FULL),
    "full-2": (2, "optimizer", FULL),
    "adapters-3": (3, "none", {}),
    "full-3": (3, "all", FULL),
}
#: A run whose optimizer needs no compilation.
SHORT = "full-short"
#: The step that every run drops.
DROPPED = 3


def deepspeed_options(directory: Path, base: Path) -> dict[str, dict[str, Any]]:
    """Options of all runs."""
    options = options_of(directory, base)
    options["method"]["loraplus_ratio"] = 4.0
    # 5 rows of very different length: the processes have different numbers of micro-batches.
    options["train"] |= {"micro_batch_size": 2, "weight_decay": 0.1}
    return options


def shared(name: str) -> dict[str, Any]:
    """The options of a run by both processes."""
    stage, offload, sections = (3, "none", FULL) if name == SHORT else RUNS[name]
    section = {"strategy": "deepspeed", "processes": 2, "zero_stage": stage, "offload": offload}
    return {**sections, "distributed": section}


def all_trainings(directory: Path, base: Path, ranks: Ranks) -> dict[str, Any]:
    """All runs that are compared, by both processes or by the first one alone."""
    trainings = Trainings(directory / "runs", deepspeed_options(directory, base), ranks)
    found: dict[str, Any] = {}
    for method, sections in (("adapters", {}), ("full", FULL)):
        with dropping():
            found[method] = trainings.run(method, together=False, ask=ask_both, **sections)
    for name, (stage, _, sections) in RUNS.items():
        with dropping(), failing_in_evaluation() if stage == 3 and ranks.is_first else contextlib.nullcontext():
            found[name] = trainings.run(name, together=True, ask=ask_both, **shared(name))
        with dropping():
            trainings.run(f"{name}-again", together=True, resume_of=name, **shared(name))
            trainings.run(f"{name}-two-one", together=False, resume_of=name, **sections)
            alone = name.partition("-")[0]
            with failing_once() if name == "adapters-2" and ranks.rank == 1 else contextlib.nullcontext():
                trainings.run(f"{name}-one-two", together=True, resume_of=alone, **shared(name))
    return found


@contextlib.contextmanager
def dropping() -> Iterator[None]:
    """Have the update of a step dropped, as one whose norm is not finite is."""
    usual = FiniteCheck.accepts

    def accepts(check: FiniteCheck, step: int, *others: Any, **named: Any) -> bool:
        return usual(check, step, *others, **named) and step != DROPPED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FiniteCheck, "accepts", accepts)
        yield


@contextlib.contextmanager
def patched_passes(fail: Callable[[int], bool]) -> Iterator[None]:
    """Let memory run out after the first pass of windows, by their number; the first of all is the rehearsal."""
    from core.worker.distributed.deepspeed import DeepSpeed

    usual, windows = DeepSpeed.passes, itertools.count()

    def passes(strategy: DeepSpeed, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        window = next(windows)
        for number, rows in enumerate(usual(strategy, micro_batches)):
            yield rows
            if fail(window) and not number:
                raise torch.OutOfMemoryError("CUDA out of memory, injected")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeed, "passes", passes)
        yield


def failing_once() -> contextlib.AbstractContextManager[None]:
    """Let memory run out in the first window of a run, once."""
    return patched_passes(lambda window: window == 1)


@contextlib.contextmanager
def failing_in_evaluation() -> Iterator[None]:
    """Let memory run out in the middle of the first pass of the first evaluation, between two modules of a layer."""
    usual, due = Evaluator.measure, itertools.count()

    def measure(evaluator: Evaluator, *others: Any) -> Any:
        middle = decoder_layers(evaluator._loaded.model)[1].mlp.up_proj

        def fail(_module: Any, _inputs: Any) -> None:
            if next(due) == 0:
                raise torch.OutOfMemoryError("CUDA out of memory, injected")

        handle = middle.register_forward_pre_hook(fail)
        try:
            return usual(evaluator, *others)
        finally:
            handle.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "measure", measure)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Trained:
    """All runs, done once."""
    directory = tmp_path_factory.mktemp("deepspeed")
    write_rows(directory / "rows.jsonl")
    first, _ = run_pair(directory, lambda ranks: all_trainings(directory, tiny_model_dir, ranks), patience=1800.0)
    assert isinstance(first, dict), first
    return Trained(directory / "runs", first)


@cases("name", list(RUNS))
def test_two_processes_learn_measure_and_continue_like_one(trained: Trained, name: str) -> None:
    alone = name.partition("-")[0]
    trained.assert_learned_alike(name, alone)
    trained.assert_measured_alike(name, alone)
    trained.assert_continues(name)


def test_running_out_of_memory_in_one_process_costs_it_a_finer_window(trained: Trained) -> None:
    # In the other process, which writes no record: the run has come to its end with the same result.
    assert trained.events("adapters-2-one-two", StepEvent)[-1].step == 4


def test_weights_in_16_bit_go_on_exactly_from_their_copies_in_32(tmp_path: Path, tiny_model_dir: Path) -> None:
    write_rows(tmp_path / "rows.jsonl")
    bf16: dict[str, Any] = {"train": {"precision": "bf16"}}

    def work(ranks: Ranks) -> str:
        trainings = Trainings(tmp_path / "runs", deepspeed_options(tmp_path, tiny_model_dir), ranks)
        trainings.run("two", together=True, **shared(SHORT), **bf16)
        trainings.run("again", together=True, resume_of="two", **shared(SHORT), **bf16)
        trainings.run("one", together=False, resume_of="two", **FULL, **bf16)
        return "done"

    assert run_pair(tmp_path, work, patience=300.0)[0] == "done"
    two, again, one = (result(Run(tmp_path / "runs" / name)) for name in ("two", "again", "one"))
    assert largest_difference(two, again) == 0.0
    # A single process rounds stochastically: the last of the 8 bits of a weight.
    assert 0.0 < largest_difference(two, one) < 2e-2


def test_running_out_of_memory_after_sums_have_begun_ends_the_run_with_an_error(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl")

    def work(ranks: Ranks) -> None:
        trainings = Trainings(tmp_path / "runs", deepspeed_options(tmp_path, tiny_model_dir), ranks)
        with failing_once() if ranks.rank == 1 else contextlib.nullcontext():
            trainings.run(SHORT, together=True, **shared(SHORT))

    _, other = run_pair(tmp_path, work, patience=300.0)
    assert other.startswith(
        "MemoryShortageError: Memory ran out in a pass of 2 rows, and with distributed.zero_stage = 3"
    )


def test_a_model_that_uses_weights_from_outside_of_their_modules_is_refused(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows.jsonl")

    def forward(network: Any, states: torch.Tensor) -> Any:
        return states @ network.up_proj.weight.T @ network.down_proj.weight.T

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", forward)

    def work(ranks: Ranks) -> None:
        trainings = Trainings(tmp_path / "runs", deepspeed_options(tmp_path, tiny_model_dir), ranks)
        trainings.run(SHORT, together=True, **shared(SHORT))

    for refused in run_pair(tmp_path, work, patience=300.0):
        assert refused.startswith("UserError: distributed.zero_stage = 3 cannot share this model out")
