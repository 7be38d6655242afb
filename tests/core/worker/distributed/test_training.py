"""Two processes train like one: methods, objectives, running out of memory in a single process, and bytes sent."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import Config
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.memory.rows import Rows
from core.memory.strategy import chosen_strategy
from core.models.architecture.measuring import load_architecture
from core.runs.record.store import Run, create_run
from core.worker import train as recipe
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.distributed import fsdp2
from core.worker.distributed.fsdp2 import Fsdp2
from core.worker.distributed.ranks import Ranks
from core.worker.evaluate.evaluate import Evaluator
from core.worker.follower import follow
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.setup import build as setup
from tests.cases import cases
from tests.e2e.workers import notice_codes, steps

from .pairs import needs_fsdp2, run_pair
from .trainings import FULL, largest_difference, merged, result

STEPS = 6
MEASURED: dict[str, Any] = {"data": {"eval_share": 0.2}, "eval": {"exact_match": False, "samples": 0, "every_steps": 1}}


def write_rows(path: Path, kind: str) -> Path:
    """Rows of different lengths: prompts with an answer, with two, or with a label."""
    with path.open("w") as file:
        for number in range(24):
            row: dict[str, Any] = {"prompt": f"ticket {number} " + "please " * (number % 7)}
            good, bad = f"the area is {number % 3}", "it is not known, perhaps " + "so " * (number % 4)
            kinds: dict[str, dict[str, Any]] = {
                "pairs": {"chosen": good, "rejected": bad},
                "labels": {"completion": good if number % 2 else bad, "label": bool(number % 2)},
                "rows": {"completion": good},
            }
            file.write(json.dumps(row | kinds[kind]) + "\n")
    return path


def config_of(directory: Path, base: Path, kind: str = "rows", **sections: dict[str, Any]) -> Config:
    """Configuration of a run of two processes on rows of a kind."""
    values: dict[str, dict[str, Any]] = {
        "model": {"base": str(base)},
        "data": {"train": str(write_rows(directory / "rows.jsonl", kind))},
        "train": {"max_steps": STEPS, "batch_size": 8},
        "eval": {"probe": False},
        "hardware": {"device": "cpu"},
        "distributed": {"processes": 2},
    }
    return merged(values, sections)


def train(
    directory: Path,
    config: Config,
    count: int,
    spoil: Callable[[Ranks], None] = lambda _: None,
    timeout: float = 60.0,
    ends: Sequence[str] = ("all steps done", "followed"),
) -> Run:
    """A run of some processes, forked from this one; ``ends`` is how each of them has to end."""
    directory.mkdir()
    run = create_run(config, directory.name)

    def work(ranks: Ranks) -> str:
        spoil(ranks)
        recorder = Recorder(run, keeps=ranks.is_first)
        if not ranks.is_first:
            follow(config, recorder, ranks, resume=False)
            return "followed"
        outcome = recipe.train(config, recorder, Controls(), resume=False, ranks=ranks)
        recorder.close("finished", "", outcome)
        return outcome.reason

    found = run_pair(directory, work, count=count, timeout=timeout)
    assert all(map(str.startswith, found, ends)), found
    return run


@pytest.mark.long
@cases(
    ("kind", "method", "options"),
    [
        ("rows", {"name": "qlora", "neftune_alpha": 5.0}, {}),
        ("rows", {"name": "full"}, {"learning_rate": 1e-3}),
        ("pairs", {"name": "lora"}, {"objective": "dpo"}),
        ("pairs", {"name": "lora"}, {"objective": "orpo"}),
        ("labels", {"name": "lora"}, {"objective": "kto"}),
    ],
    ids=["noise", "full", "dpo", "orpo", "kto"],
)
def test_two_processes_train_like_one(
    tmp_path: Path, tiny_model_dir: Path, kind: str, method: dict[str, Any], options: dict[str, Any]
) -> None:
    def config(processes: int) -> Config:
        # Three processes would have rows of 7 left over; so has the last step of each epoch.
        train = {"batch_size": 7, "precision": "fp32", "learning_rate": 5e-3, **options}
        memory = {"optimizer_in_backward": "auto" if processes > 1 else "off"}
        count = {"processes": processes}
        return config_of(tmp_path, tiny_model_dir, kind, method=method, train=train, memory=memory, distributed=count)

    alone, pair = (steps(train(tmp_path / str(count), config(count), count)) for count in (1, 2))
    assert len(alone) == len(pair) == STEPS
    for one, two in zip(alone, pair, strict=True):
        assert two.loss == pytest.approx(one.loss, abs=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert (two.tokens, two.supervised_tokens, two.lr) == (one.tokens, one.supervised_tokens, one.lr)
        assert two.reward_margin == pytest.approx(one.reward_margin, abs=1e-5)
        assert two.reward_accuracy == pytest.approx(one.reward_accuracy, abs=1e-6)


@pytest.mark.long
def test_two_processes_train_an_adapter_further_like_one(tmp_path: Path, tiny_model_dir: Path) -> None:
    def run(name: str, processes: int, **model: str) -> Run:
        base = {"base": str(tiny_model_dir)} | model
        options: dict[str, Any] = {"max_steps": STEPS, "batch_size": 7, "precision": "fp32", "learning_rate": 5e-3}
        sections: dict[str, Any] = {"model": base, "train": options, "distributed": {"processes": processes}}
        config = config_of(tmp_path, tiny_model_dir, method={"name": "lora"}, **sections)
        return train(tmp_path / name, config, processes)

    parent = run("parent", 1)
    alone, pair = (steps(run(f"further-{count}", count, adapter=str(parent.adapter_path))) for count in (1, 2))
    assert alone[0].loss < steps(parent)[0].loss - 0.1
    assert [event.loss for event in pair] == pytest.approx([event.loss for event in alone], abs=1e-5)


@pytest.mark.long
def test_a_process_that_runs_out_of_memory_runs_its_share_again_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = config_of(tmp_path, tiny_model_dir, method={"name": "lora"}, train={"precision": "fp32"})

    def spoil(ranks: Ranks) -> None:
        if ranks.is_first:
            return
        whole = recipe.FinetuneRecipe.accumulate

        def accumulate(self: Any, micro_batches: list[list[int]], **asked: Any) -> Any:
            result = whole(self, micro_batches, **asked)
            if max(map(len, micro_batches)) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Injected.")
            return result

        recipe.FinetuneRecipe.accumulate = accumulate  # type: ignore[method-assign]

    undisturbed, cut = train(tmp_path / "well", config, 2), train(tmp_path / "cut", config, 2, spoil)
    losses = [event.loss for event in steps(undisturbed)]
    assert [event.loss for event in steps(cut)] == pytest.approx(losses, abs=1e-5)
    assert "memory_cut" not in notice_codes(cut), "the first process had memory, and cuts nothing"


@pytest.mark.long
def test_the_first_process_may_be_slow_for_longer_than_the_others_wait(tmp_path: Path, tiny_model_dir: Path) -> None:
    seconds = 5.0
    often = {"checkpoint": {"every_steps": 1}, "distributed": {"timeout": seconds}, **MEASURED}
    config = config_of(tmp_path, tiny_model_dir, method={"name": "lora"}, train={"max_steps": 2}, **often)

    def spoil(ranks: Ranks) -> None:
        if ranks.is_first:
            for owner, name in ((setup, "prepare"), (checkpoints, "save_checkpoint"), (Evaluator, "measure")):
                setattr(owner, name, slow_once(getattr(owner, name), 1.3 * seconds))

    undisturbed = train(tmp_path / "well", config, 2, timeout=seconds)
    slow = train(tmp_path / "slow", config, 2, spoil, timeout=seconds)
    assert largest_difference(result(slow), result(undisturbed)) == 0.0


def slow_once(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """A function that takes so many seconds longer the first time."""
    delays = iter([seconds])

    def slowed(*args: Any, **options: Any) -> Any:
        threading.Event().wait(next(delays, 0.0))
        return work(*args, **options)

    return slowed


@needs_fsdp2
@pytest.mark.parametrize("order", ["save", "forward"])
def test_the_first_process_notices_a_loss_while_it_gathers_weights(
    tmp_path: Path, tiny_model_dir: Path, order: str
) -> None:
    often = {"train": {"max_steps": 2}, "distributed": {"strategy": "fsdp2"}, **MEASURED}
    config = config_of(tmp_path, tiny_model_dir, **FULL, **often)

    def spoil(ranks: Ranks) -> None:
        if ranks.is_first:
            return
        gather, lend, collectives = fsdp2.gather_rows, Fsdp2.lend, itertools.count()

        def die_at_the_third(_: Any = None) -> None:
            if next(collectives) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        def gather_less(local: torch.Tensor, rows: int) -> torch.Tensor | None:
            die_at_the_third()
            return gather(local, rows)

        def lend_less(strategy: Fsdp2) -> None:
            strategy.sharded.collectives.before = die_at_the_third
            lend(strategy)

        if order == "save":
            fsdp2.gather_rows = gather_less
        else:
            Fsdp2.lend = lend_less  # type: ignore[method-assign, assignment]

    train(tmp_path / "run", config, 2, spoil, 600.0, ends=("RankLostError: RuntimeError: ", "gone"))


# Bytes received per step, by the kernel's count, against the plan.

#: Place of ``tcpi_bytes_received`` in Linux's ``struct tcp_info``.
RECEIVED = 128
#: Bytes of a step that no plan counts: orders, numbers that are summed, and gloo's headers.
TALK = 8192
WIRE_STEPS = 3


def received() -> int:
    """Bytes that this process has received over all of its TCP connections."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            descriptor = os.dup(int(name))
            with socket.socket(fileno=descriptor) as twin:
                if twin.type == socket.SOCK_STREAM and twin.family in (socket.AF_INET, socket.AF_INET6):
                    told = twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", told, RECEIVED)[0]
    return total


@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("replicate", "qlora"),
        pytest.param("fsdp2", "qlora", marks=[pytest.mark.long, needs_fsdp2]),
        pytest.param("fsdp2", "full", marks=needs_fsdp2),
    ],
)
def test_a_step_sends_the_planned_bytes(tmp_path: Path, tiny_model_dir: Path, strategy: str, method: str) -> None:
    config = config_of(
        tmp_path,
        tiny_model_dir,
        method={"name": method, "rank": 16},
        train={"max_steps": WIRE_STEPS, "batch_size": 4, "micro_batch_size": 1, "precision": "fp32"},
        memory={"optimizer_in_backward": "off", "gradient_checkpointing": "on"},
        distributed={"strategy": strategy},
    )
    counts = tmp_path / "counts"

    def spoil(ranks: Ranks) -> None:
        if ranks.is_first:
            return
        usual = recipe.FinetuneRecipe.step

        def step(self: Any) -> None:
            before = received()
            usual(self)
            with counts.open("a") as file:
                file.write(f"{received() - before}\n")

        recipe.FinetuneRecipe.step = step  # type: ignore[method-assign]

    train(tmp_path / "run", config, 2, spoil)
    rows = Rows([(64, 24)])
    model = load_architecture(tiny_model_dir)
    plan = chosen_strategy(model, config, Machine("cpu"), rows, cards=Cards(2)).plan
    told = plan.wire_bytes
    if method == "full":
        # Where NCCL scatters the sums of gradients, gloo makes an all-reduce of it, which sends as much again.
        told += plan.step.micro_batches * 4 * plan.trainable // 2
    measured = [int(line) for line in counts.read_text().split()]
    assert len(measured) == WIRE_STEPS
    for count in measured:
        assert told <= count <= told + TALK
