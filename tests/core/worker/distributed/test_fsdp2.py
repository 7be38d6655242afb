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

from core.runs.control.client import ControlClient
from core.runs.record.events import EvalEvent, NoticeEvent, StepEvent
from core.worker.distributed.fsdp2 import Fsdp2
from core.worker.distributed.ranks import Ranks
from tests.cases import cases

from .pairs import run_pair
from .trainings import Trained, Trainings, largest_difference, result, write_rows

pytestmark = pytest.mark.long

#: Adam makes steps of the same length of gradients that are next to nothing.
CLOSE = 1e-4
FULL: dict[str, Any] = {"method": {"name": "full"}, "memory": {"optimizer_in_backward": "off"}}
PISSA: dict[str, Any] = {"method": {"init": "pissa"}, "train": {"max_steps": 1}}
OFFLOADED: dict[str, Any] = {"distributed": {"strategy": "fsdp2", "processes": 2, "offload": "all"}}
SHARED: dict[str, Any] = {"distributed": {"strategy": "fsdp2", "processes": 2}}


def all_trainings(directory: Path, base: Path, ranks: Ranks) -> dict[str, Any]:
    """All runs that are compared, by both processes or by the first one alone."""
    options: dict[str, dict[str, Any]] = {
        "model": {"base": str(base)},
        "data": {"train": str(directory / "rows.jsonl"), "eval_share": 0.2},
        "method": {"name": "qlora", "rank": 4, "alpha": 8, "dropout": 0.0},
        "train": {"max_steps": 4, "batch_size": 5, "precision": "fp32", "learning_rate": 1e-3},
        "eval": {"every_steps": 2, "samples": 0, "probe": False},
        "checkpoint": {"every_steps": 1, "keep": 10},
        "hardware": {"device": "cpu"},
        "chat": {"max_new_tokens": 8},
    }
    trainings = Trainings(directory / "runs", options, ranks)

    def ask(client: ControlClient) -> list[str]:
        asked = {"messages": [{"role": "user", "content": "ticket high low"}], "temperature": 0.0}
        return [str(list(client.generate({**asked, "source": source}))[-1]["text"]) for source in ("tuned", "base")]

    found: dict[str, Any] = {}
    for name, sections in (("adapters", {}), ("full", FULL)):
        found[f"{name} alone"] = trainings.run(f"{name}-alone", together=False, ask=ask, **sections)
        found[name] = trainings.run(name, together=True, ask=ask, **sections, **SHARED)
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
def test_two_learn_what_one_learns(trained: Trained, name: str) -> None:
    one, two = (trained.events(run, StepEvent) for run in (f"{name}-alone", name))
    assert [event.step for event in two] == [1, 2, 3, 4]
    # The first step's gradient is that of the same weights.
    assert two[0].grad_norm == pytest.approx(one[0].grad_norm, abs=1e-5)
    for mine, theirs in zip(two, one, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert largest_difference(result(trained.run(name)), result(trained.run(f"{name}-alone"))) < CLOSE


@BOTH
def test_a_run_goes_on_exactly_where_it_was(trained: Trained, name: str) -> None:
    assert largest_difference(result(trained.run(name)), result(trained.run(f"{name}-again"))) == 0.0


def test_what_was_taken_out_of_the_base_is_saved_with_the_adapters(trained: Trained) -> None:
    assert largest_difference(result(trained.run("pissa")), result(trained.run("pissa-alone"))) < CLOSE


@BOTH
@cases("way", ["two-one", "one-two"])
def test_checkpoints_know_nothing_of_processes(trained: Trained, name: str, way: str) -> None:
    assert largest_difference(result(trained.run(name)), result(trained.run(f"{name}-{way}"))) < CLOSE


@BOTH
def test_the_model_is_measured_and_asked_between_two_steps(trained: Trained, name: str) -> None:
    assert trained.answers[name] == trained.answers[f"{name} alone"]
    assert len(trained.answers[name]) == 2
    one, two = (trained.events(run, EvalEvent) for run in (f"{name}-alone", name))
    assert [event.step for event in two] == [2, 4]
    assert [event.loss for event in two] == pytest.approx([event.loss for event in one], abs=1e-5)


@BOTH
def test_memory_that_runs_out_in_one_process_costs_all_a_finer_window(trained: Trained, name: str) -> None:
    assert "memory_cut" in [notice.code for notice in trained.events(f"{name}-one-two", NoticeEvent)]
    # What it learned is compared with the others above.
    assert trained.events(f"{name}-one-two", StepEvent)[-1].step == 4
