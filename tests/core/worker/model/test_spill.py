"""Tensors in a file while a model is put together."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.modeling_gguf_pytorch_utils import Qwen2MoeTensorProcessor

from core.errors import UserError
from core.worker.model import gguf
from core.worker.model.spill import Spill, SpilledTensors, parameters_spilled
from core.worker.model.starter import resolve_base
from tests.cases import cases
from tests.progress import quiet

from .gguf_files import write_gguf, write_lfm2_gguf
from .test_gguf import converted


@cases("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_a_tensor_in_the_file_is_read_and_written_like_another(tmp_path: Path, dtype: torch.dtype) -> None:
    spill = Spill(tmp_path / "weights")
    tensors = [torch.arange(7).to(dtype), torch.arange(12).reshape(3, 4).t().to(dtype), torch.empty(0, 3, dtype=dtype)]
    moved = [spill.move(tensor) for tensor in tensors]
    moved[0][2] = 5
    assert all(one.shape == other.shape and one.dtype == other.dtype for one, other in zip(moved, tensors, strict=True))
    assert moved[0].tolist() == [0, 1, 5, 3, 4, 5, 6]
    assert torch.equal(moved[1], tensors[1])
    (tmp_path / "weights").unlink()
    assert moved[0].tolist() == [0, 1, 5, 3, 4, 5, 6]


def test_parameters_of_a_model_are_in_the_file_as_soon_as_it_has_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with parameters_spilled(Spill(tmp_path / "weights")):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert size <= (tmp_path / "weights").stat().st_size < size + 64 * 40
    assert model.lm_head.weight is model.model.embed_tokens.weight, "tied as ever"
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    before = (tmp_path / "weights").read_bytes()
    with torch.no_grad():
        model.model.norm.weight.fill_(7)
    assert (tmp_path / "weights").read_bytes() != before
    torch.nn.Linear(2, 2)
    assert (tmp_path / "weights").stat().st_size == len(before), "and only inside"


@cases("write", [write_gguf, write_lfm2_gguf], ids=["by processor", "by mapping"])
def test_a_file_is_converted_to_the_bits_that_transformers_gives(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Path], Path]
) -> None:
    path = write(tiny_model_dir, tmp_path / "model.gguf")
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    move = Spill.move
    moved: list[int] = []

    def note(spill: Spill, tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.numel())
        return move(spill, tensor)

    monkeypatch.setattr(Spill, "move", note)
    found = AutoModelForCausalLM.from_pretrained(resolve_base(str(path), quiet))
    assert sum(moved) == sum(parameter.numel() for parameter in expected.parameters()), "each once"
    wanted: dict[str, Any] = expected.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, wanted[name]), name


def test_experts_are_put_together_in_the_file(tmp_path: Path) -> None:
    names = {f"blk.0.ffn_{kind}_exps": f"experts.{where}" for kind, where in _EXPERTS.items()}
    generator = np.random.default_rng(0)
    parts = {kind: generator.standard_normal((3, 4, 5), dtype=np.float32) for kind in _EXPERTS}
    plain: dict[str, torch.Tensor] = {}
    spilled = SpilledTensors(Spill(tmp_path / "weights"), torch.bfloat16)
    for tensors in (plain, spilled):
        for kind, weights in parts.items():
            Qwen2MoeTensorProcessor(config={}).process(
                weights,
                f"blk.0.ffn_{kind}_exps.weight",
                tensor_key_mapping=names,
                parsed_parameters={"tensors": tensors},
            )
    assert spilled.keys() == plain.keys() == {"experts.gate_up", "experts.down"}
    for name, tensor in plain.items():
        assert torch.equal(spilled[name], tensor.to(torch.bfloat16))


_EXPERTS = {"gate": "gate_up", "up": "gate_up", "down": "down"}


def test_a_file_whose_largest_tensor_does_not_fit_is_refused_before_anything_is_read(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf")
    monkeypatch.setattr("core.worker.model.gguf.cpu.memory", lambda: (8_000_000_000, 8_000_064_000))
    monkeypatch.setattr(gguf, "_read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"takes .* of memory for its largest tensor, and 64.0 kB are free"):
        resolve_base(str(path), quiet)
    assert converted() == []


def test_a_disk_that_fills_up_is_told_as_such(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf")
    monkeypatch.setattr(Spill, "move", fail)
    with pytest.raises(UserError, match=r"No space left|is full"):
        resolve_base(str(path), quiet)
    assert converted() == []
