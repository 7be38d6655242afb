"""FSDP2 on two processes against one: gradients, runs, checkpoints that know nothing of processes, and memory that runs
out in one of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.runs.record.events import NoticeEvent, StepEvent
from core.worker.distributed.fsdp2 import Fsdp2
from core.worker.distributed.ranks import Ranks
from tests.cases import cases

from .pairs import run_pair
from .trainings import CLOSE, FULL, Trained, Trainings, ask_both, options_of, write_rows

pytestmark = pytest.mark.long

PISSA: dict[str, Any] = {"method": {"init": "pissa"}, "train": {"max_steps": 1}}
OFFLOADED: dict[str, Any] = {"distributed": {"strategy": "fsdp2", "processes": 2, "offload": "all"}}
SHARED: dict[str, Any] = {"distributed": {"strategy": "fsdp2", "processes": 2}}


def all_trainings(directory: Path, base: Path, ranks: Ranks) -> dict[str, Any]:
    """All runs that are compared, by both processes or by the first one alone."""
    trainings = Trainings(directory / "runs", options_of(directory, base), ranks)
    found: dict[str, Any] = {}
    for name, sections in (("adapters", {}), ("full", FULL)):
        found[f"{name}-alone"] = trainings.run(f"{name}-alone", together=False, ask=ask_both, **sections)
        found[name] = trainings.run(name, together=True, ask=ask_both, **sections, **SHARED)
        trainings.run(f"{name}-again", together=True, resume_of=name, **sections, **SHARED)
        trainings.run(f"{name}-two-one", together=False, resume_of=name, **sections)
        with failing_once(5 if sections else 1) if ranks.rank == 1 else contextlib.nullcontext():
            trainings.run(f"{name}-one-two", together=True, resume_of=f"{name}-alone", **sections, **OFFLOADED)
    trainings.run("pissa-alone", together=False, **PISSA)
    trainings.run("pissa", together=True, **PISSA, **SHARED)
    return found


@contextlib.contextmanager
def failing_once(collective: int) -> Iterator[None]:
    """Let memory run out in the first pass of the run's first window, before a collective: the second one is in the
    forward pass, the sixth in the backward one."""
    usual, windows = Fsdp2.passes, itertools.count()

    def passes(strategy: Fsdp2, micro_batches: Sequence[list[int]]) -> Iterator[list[int]]:
        def fail(issued: int) -> None:
            if issued == collective:
                strategy.sharded.collectives.before = lambda _: None
                raise torch.OutOfMemoryError("CUDA out of memory, injected")

        # The first of all is the rehearsal.
        if next(windows) == 1:
            strategy.sharded.collectives.before = fail
        yield from usual(strategy, micro_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fsdp2, "passes", passes)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Trained:
    """All runs, done once."""
    directory = tmp_path_factory.mktemp("fsdp2")
    write_rows(directory / "rows.jsonl")
    first, _ = run_pair(directory, lambda ranks: all_trainings(directory, tiny_model_dir, ranks), patience=900.0)
    assert isinstance(first, dict), first
    return Trained(directory / "runs", first)


BOTH = cases("name", ["adapters", "full"])


@BOTH
def test_two_processes_learn_measure_and_continue_like_one(trained: Trained, name: str) -> None:
    trained.assert_learned_alike(name, f"{name}-alone")
    trained.assert_measured_alike(name, f"{name}-alone")
    trained.assert_continues(name)


def test_initial_adapter_weights_taken_out_of_the_base_are_saved_with_the_adapters(trained: Trained) -> None:
    trained.assert_equal("pissa", "pissa-alone", CLOSE)


@BOTH
def test_running_out_of_memory_in_one_process_costs_all_a_finer_window(trained: Trained, name: str) -> None:
    assert "memory_cut" in [notice.code for notice in trained.events(f"{name}-one-two", NoticeEvent)]
    # Its result is compared with the others above.
    assert trained.events(f"{name}-one-two", StepEvent)[-1].step == 4
