"""Bytes received per step, by the kernel's count, against the plan."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from core.memory.cards import Cards
from core.memory.plan import Machine
from core.memory.rows import Rows
from core.memory.strategy import chosen_strategy
from core.models.architecture.measuring import load_architecture
from core.worker import train as recipe
from core.worker.distributed.ranks import Ranks

from .pairs import needs_fsdp2
from .test_training import config_of, train

#: Place of ``tcpi_bytes_received`` in Linux's ``struct tcp_info``.
RECEIVED = 128
#: Bytes of a step that no plan counts: orders, numbers that are summed, and gloo's headers.
TALK = 8192
STEPS = 3


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
        train={"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 1, "precision": "fp32"},
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
    assert len(measured) == STEPS
    for count in measured:
        assert told <= count <= told + TALK
