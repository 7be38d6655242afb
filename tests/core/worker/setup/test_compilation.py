from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from transformers import MistralConfig

from core.worker.data.batches import collate
from core.worker.fused import attention, attention_kernels
from core.worker.fused.attention_kernels import Kernel
from core.worker.generate.generate import generate_batch
from core.worker.model.activation_offload import ActivationMover, ActivationOffload
from core.worker.model.model import LoadedModel, decoder_layers, set_gradient_checkpointing
from core.worker.setup import compilation
from core.worker.setup.compilation import (
    Counts,
    Toolchain,
    compile_layers,
    missing,
    this_toolchain,
    told,
    try_compilation,
)
from tests.cases import cases
from tests.core.worker.fused.varlen import varlen_attn
from tests.core.worker.model.lanes import PromptDevice
from tests.core.worker.setup.test_fast_paths import LLAMA, SMALL, Setup, arrange, config, rows

CPU = torch.device("cpu")
#: Traced and differentiated as for the real compiler, without the minute that this takes.
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No programs of other tests, and torch's own limit of them."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


def noted(into: list[str]) -> Any:
    return lambda code, message, _hint: into.append(f"{code}: {message}")


class Compiled(Setup):
    def __init__(self, directory: Path, **train: Any) -> None:
        super().__init__(directory, config(train={"compile": True, **train}))
        self.notices: list[str] = []
        self.compilation = compile_layers(self.loaded, noted(self.notices), backend=BACKEND)
        self.began = Counts.read()

    @property
    def graphs(self) -> int:
        """Programs since."""
        return Counts.read().graphs - self.began.graphs


def plain(directory: Path) -> Setup:
    return Setup(directory, config(train={"fused_layers": False, "share_prefix": False}))


def assert_learns(compiled: Compiled, usual: Setup, batches: list[Any]) -> None:
    for chosen in batches:
        wanted = torch.stack([usual.gradient([row]) for row in chosen]).sum(dim=0)
        torch.testing.assert_close(compiled.gradient(chosen), wanted, atol=1e-5, rtol=1e-3)


def assert_whole(compiled: Compiled, most: int) -> None:
    """Few programs, none interrupted, no limit reached."""
    counts = Counts.read()
    assert compiled.notices == []
    assert counts.breaks == ()
    assert not counts.limited
    assert 0 < compiled.graphs <= most


def batches() -> list[Any]:
    """Of many shapes: rows alone, in pairs, and all together."""
    return [rows()[:2], rows(), rows()[1:4], rows(9), rows(12)[3:], rows(7)[2:]]


@pytest.mark.long
def test_packed_rows_without_a_shared_prefix_need_few_programs_reported_once(tiny_model_dir: Path) -> None:
    compiled = Compiled(tiny_model_dir, packing=True, share_prefix=False)
    assert_learns(compiled, plain(tiny_model_dir), batches())
    # The first layer's input needs no gradient, the other layers' inputs do.
    assert_whole(compiled, 2)
    assert torch._dynamo.config.recompile_limit == compilation.RECOMPILE_LIMIT
    reports: list[tuple[str, ...]] = []
    for step in (compilation.REPORT_STEP - 1, compilation.REPORT_STEP, compilation.REPORT_STEP):
        compiled.compilation.report(step, lambda *told: reports.append(told))
        assert len(reports) == (step == compilation.REPORT_STEP)
    programs = "2 programs for all of them and all lengths, none of them interrupted."
    layers = len(decoder_layers(compiled.loaded.model))
    assert reports == [("info", "compiled", f"The {layers} layers are compiled: {programs}", "")]


@pytest.mark.long
@pytest.mark.parametrize("train", [{"packing": True}, {"share_prefix": False}])
def test_recomputation_and_offloading_stay_outside(tiny_model_dir: Path, train: dict[str, bool]) -> None:
    compiled, usual, device = Compiled(tiny_model_dir, **train), plain(tiny_model_dir), PromptDevice()
    away = ActivationOffload(ActivationMover(device), lambda tensor: tensor.requires_grad)
    set_gradient_checkpointing(compiled.loaded.model, True, away)
    compiled.loaded.model.train()
    assert_learns(compiled, usual, batches()[:3])
    assert_whole(compiled, 2)
    assert device.copies["out"] == device.copies["back"] > 0
    before = compiled.graphs
    set_gradient_checkpointing(compiled.loaded.model, False)
    assert_learns(compiled, usual, batches())
    assert_whole(compiled, 2)
    assert compiled.graphs == before, "kept or recomputed, the programs are the same"


@pytest.mark.long
def test_evaluation_and_answers_take_no_programs_and_learning_few(tiny_model_dir: Path) -> None:
    compiled = Compiled(tiny_model_dir)
    with torch.no_grad():
        for chosen in batches():
            compiled.loss(*collate(chosen, 0, CPU))
    asked = [[{"role": "user", "content": text}] for text in ("Hi", "What is that?")]
    generate_batch(compiled.loaded.model, compiled.loaded.tokenizer, asked, 4, lambda *_: None)
    assert compiled.graphs == 0
    usual = plain(tiny_model_dir)
    assert_learns(compiled, usual, batches()[:2])
    assert_whole(compiled, 2)
    # Shared where it is worth it, padded where it is not.
    assert_learns(compiled, usual, batches()[2:])
    assert_whole(compiled, 4)


@pytest.mark.long
def test_rows_in_blocks_are_one_operation(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    compiled = Compiled(tiny_model_dir, share_prefix=False)
    assert_learns(compiled, plain(tiny_model_dir), batches())
    assert_whole(compiled, 2)


@pytest.mark.long
def test_windows_are_no_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with variable-length attention, rows longer than the window."""
    monkeypatch.setattr(attention, "_windowed", {"cpu"})
    monkeypatch.setattr(attention, "choose_kernel", lambda *_args, **_kwargs: Kernel.VARLEN)
    monkeypatch.setattr(attention_kernels, "find_varlen", lambda: varlen_attn)

    def gradients(compile_them: bool, **train: Any) -> list[torch.Tensor]:
        loss = arrange(MistralConfig(**SMALL, **LLAMA, sliding_window=26), attention_alone=compile_them, **train)
        if compile_them:
            loaded = LoadedModel(loss._causal, None, CPU, torch.float32)
            compile_layers(loaded, lambda *_: pytest.fail("not compiled"), backend=BACKEND)
        found = []
        for chosen in (rows()[:2], rows(), rows(9)):
            parameters = list(loss._causal.model.layers.parameters())
            total = loss(*collate(chosen, 0, CPU))
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(total, parameters)]))
        return found

    for train in ({"share_prefix": False}, {}, {"packing": True}):
        for ours, theirs in zip(gradients(True, **train), gradients(False, **train), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    found = Counts.read()
    assert found.breaks == ()
    assert 2 <= found.graphs <= 4, "padded, and packed or shared"


# Failures.


@pytest.mark.long
def test_a_layer_is_tried_before(tiny_model_dir: Path) -> None:
    setup = Setup(tiny_model_dir, config(train={"compile": True}))
    notices: list[str] = []
    modes = [module.training for module in setup.loaded.model.modules()]
    assert try_compilation(setup.loaded, contextlib.nullcontext, noted(notices), backend=BACKEND)
    assert notices == []
    assert Counts.read().graphs > 0
    assert modes == [module.training for module in setup.loaded.model.modules()]
    assert all(parameter.grad is None for parameter in setup.loaded.model.parameters())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that fails on every graph."""

    def failing(*_: Any) -> Any:
        raise RuntimeError("Python.h: No such file or directory")

    usual = torch.compile
    monkeypatch.setattr(torch, "compile", lambda inner, **_options: usual(inner, dynamic=True, backend=failing))
    return "broken"


def test_a_failed_trial_is_reported(tiny_model_dir: Path, broken: str) -> None:
    setup = Setup(tiny_model_dir, config(train={"compile": True}))
    notices: list[str] = []
    assert not try_compilation(setup.loaded, contextlib.nullcontext, noted(notices), backend=broken)
    reason = "a trial of one of them failed (RuntimeError: Python.h: No such file or directory)."
    assert notices == [f"not_compiled: The layers are fused instead of compiled: {reason}"]


def test_layers_run_uncompiled_when_compilation_fails_later(tiny_model_dir: Path, broken: str) -> None:
    setup = Setup(tiny_model_dir, config(train={"compile": True}))
    notices: list[str] = []
    made = compile_layers(setup.loaded, noted(notices), backend=broken)
    wanted = plain(tiny_model_dir).gradient(rows()[:1])
    torch.testing.assert_close(setup.gradient(rows()[:1]), wanted, atol=1e-5, rtol=1e-3)
    assert len(notices) == 1, "once, not for every layer"
    assert notices[0].startswith("compilation_ended: The layers run as they are from now on")
    reports: list[str] = []
    made.report(99, lambda *parts: reports.append(parts[0]))
    assert reports == []


def test_want_of_memory_in_compiling_is_no_failure_of_the_compiler(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Compiled(tiny_model_dir)

    class Failed(TorchDynamoException):
        inner_exception = torch.OutOfMemoryError("CUDA out of memory.")

    forward: Any = decoder_layers(compiled.loaded.model)[0].forward
    monkeypatch.setattr(forward, "_compiled", mock.Mock(side_effect=Failed))
    with pytest.raises(torch.OutOfMemoryError):
        compiled.gradient(rows())
    assert compiled.notices == []
    assert compiled.compilation.failure is None


def test_neither_are_errors_suppressed_in_the_whole_process_nor_is_a_higher_limit_lowered(tiny_model_dir: Path) -> None:
    config = torch._dynamo.config
    before, config.recompile_limit = config.suppress_errors, 200
    Compiled(tiny_model_dir)
    assert (config.suppress_errors, config.recompile_limit) == (before, 200)


# The report.


def test_graph_breaks_and_recompile_limits_are_reported() -> None:
    assert told(32, 1, [], limited=False)[1].startswith("The 32 layers are compiled: 1 program for all")
    level, message, hint = told(32, 4, ["Call of a skipped function\nmore"], limited=False)
    assert (level, hint) == ("info", "What lies between runs as it is.")
    assert message.endswith("interrupted once (Call of a skipped function).")
    level, message, _ = told(32, 64, ["a", "b"], limited=True)
    assert level == "warning"
    assert message.endswith("torch has stopped making more: other batches run as they are.")


def test_a_limit_that_is_reached_is_seen() -> None:
    def double(x: torch.Tensor, by: int) -> torch.Tensor:
        return x * by

    with torch._dynamo.config.patch(recompile_limit=1):
        fast = torch.compile(double, backend="eager", dynamic=False)
        for by in range(4):
            fast(torch.ones(2), by)
    assert Counts.read().limited


# The toolchain.


@cases(
    ("kind", "has", "system", "lacks", "advice"),
    yaml.safe_load((Path(__file__).parent / "toolchains.yaml").read_text(encoding="utf-8")),
)
def test_requirements_of_the_compiler(kind: str, has: str, system: dict[str, str], lacks: str, advice: str) -> None:
    found = missing(Toolchain(kind, "triton" in has, "compiler" in has, "headers" in has, "3.12", system))
    problem, hint = found or ("", "")
    assert bool(lacks) is (found is not None)
    assert lacks in problem
    assert hint.endswith(advice)


def test_a_c_compiler_is_found_as_triton_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not this_toolchain(torch.device("cuda")).compiler
    compiler = tmp_path / "clang"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert this_toolchain(torch.device("cuda")).compiler
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert not this_toolchain(torch.device("cuda")).compiler
    assert os.environ["CC"]


def test_without_a_compiler_the_layers_stay_as_they_are(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", mock.Mock(side_effect=InvalidCxxCompiler))
    setup = Setup(tiny_model_dir, config(train={"compile": True}))
    notices: list[str] = []
    assert not try_compilation(setup.loaded, contextlib.nullcontext, noted(notices))
    reason = "there is no C++ compiler on this machine."
    assert notices == [f"not_compiled: The layers are fused instead of compiled: {reason}"]
    assert Counts.read().graphs == 0
