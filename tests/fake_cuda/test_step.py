"""Training steps on the stand-in card: what the CUDA branch does, without a card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.fake_cuda import guard
from tests.fake_cuda.cases import KINDS, MUTATIONS, Case
from tests.short_list import long_but

#: Waits of a step: transformers' test for packed rows in each forward pass, the loss and the gradients' norm.
WAITS = 3
#: Waits of a mixture in a layer and a pass.
ROUTED = 2
#: Kernels of attention without scores in memory.
FLASH = {"_scaled_dot_product_flash_attention", "_varlen_attn"}
SHORT = [name for name in KINDS if not name.endswith("fp16")] + ["dense, fp16"]

Steps = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest) -> Steps:
    """Reports of the steps of this module's tests, all of them run in one process."""
    if reason := guard.missing():
        pytest.skip(f"not run: {reason}")
    asked = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    names = {str(item.callspec.params["name"]): None for item in asked if hasattr(item, "callspec")}
    found = on_card("4090", *names)
    return found.__getitem__


def on_card(card: str, *names: str) -> dict[str, dict[str, Any]]:
    """Reports of steps on a card, by the names of their cases."""
    command = [sys.executable, "-m", "tests.fake_cuda.step", card, *names]
    done = subprocess.run(command, cwd=guard.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def allowed_waits(case: Case) -> int:
    passes = case.micro_batches
    waits = WAITS - 1 + passes
    if case.train.get("objective") == "dpo":
        # The pass of the reference, and the rewards.
        waits += passes + 1
    if case.method.get("name") == "full" and not case.memory:
        # An update inside backward begins with a finite loss.
        waits += passes
    if "num_experts" in case.model:
        again = 2 if case.kept == 0 else 1
        waits += ROUTED * again * int(case.model["num_hidden_layers"]) * passes
    return waits


@pytest.mark.parametrize("name", long_but(SHORT, KINDS))
def test_a_step_waits_for_the_card_where_it_must_and_copies_nothing_to_fp32(name: str, steps: Steps) -> None:
    case, step = KINDS[name], steps(name)
    # Fake tensors refuse two devices in one operation.
    assert "error" not in step, step["traceback"]
    assert not step["mixed"]
    assert sum(count for *_, count in step["waits"]) <= allowed_waits(case), step["waits"]
    assert sum(count for *_, count in step["widened"]) <= case.widened, step["widened"]
    assert set(step["attention"]) <= FLASH
    assert sum(step["attention"].values()) >= 2
    of_layers = {kernel for kernel in step["kernels"] if kernel.startswith("triton::")} - {"triton::_cross_entropy"}
    assert bool(of_layers) == case.has_kernels


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_found(name: str, steps: Steps) -> None:
    dense, step = KINDS["dense"], steps(name)
    waits = sum(count for *_, count in step.get("waits", ())) - allowed_waits(dense)
    found = {
        "two devices": "at least two devices" in step.get("error", ""),
        "waits": waits > 0,
        "two dtypes": bool(step.get("mixed")),
        "fp32": bool(step.get("widened")),
    }
    assert [fault for fault, is_there in found.items() if is_there] == [MUTATIONS[name]]
    if name == "float() in a layer":
        assert any("modeling_llama" in where for _, where, _ in step["waits"])


def test_a_step_of_an_amd_card_has_the_kernels_of_an_nvidia_card() -> None:
    if reason := guard.missing():
        pytest.skip(f"not run: {reason}")
    for name, step in on_card("7900", "dense", "packed").items():
        assert "error" not in step, step["traceback"]
        assert set(step["attention"]) <= FLASH
        assert any(kernel.startswith("triton::") for kernel in step["kernels"])
        assert sum(count for *_, count in step["waits"]) <= allowed_waits(KINDS[name])
