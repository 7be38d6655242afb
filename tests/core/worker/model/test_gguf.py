"""GGUF files whose tensors do not match their architecture: refused by name, before anything is built."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.modeling_gguf_pytorch_utils import Qwen2MoeTensorProcessor

from core.errors import UserError
from core.models.description import RECORD_NAME
from core.models.find import CHECKED
from core.worker.model import gguf
from core.worker.model.spill import Spill, SpilledTensors
from core.worker.model.support import resolve_base
from tests.cases import cases
from tests.progress import quiet

from .gguf_files import converted, write_gguf, write_lfm2_gguf


def zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


@cases(
    ("options", "says"),
    [
        (
            {"without": ("blk.0.attn_q.weight", "blk.1.attn_norm.weight", "output_norm.weight")},
            ["lacks weights", "blk.0.attn_q.weight", "blk.1.attn_norm.weight", "output_norm.weight"],
        ),
        ({"without": ("token_embd.weight",)}, ["token_embd.weight"]),
        ({"num_hidden_layers": 100_000_000}, ["llama.block_count is 100000000", "of 2 blocks"]),
        ({"extra": {"blk.1.attn_q.bias": zeros(64)}}, ["does not take", "blk.1.attn_q.bias"]),
        ({"extra": {"blk.0.ffn_gate_exps.weight": zeros(2, 128, 64)}}, ["does not take", "blk.0.ffn_gate_exps"]),
        ({"extra": {"anything.else": zeros(3)}}, ["does not take", "anything.else"]),
        ({"extra": {"blk.1.attn_norm.weight": zeros(32)}}, ["other shapes", "blk.1.attn_norm.weight (32"]),
        ({"extra": {"blk.1.ffn_up.weight": zeros(64, 128)}}, ["other shapes", "model.layers.1.mlp.up_proj.weight"]),
        ({"intermediate_size": 1 << 30}, ["is described as one of"]),
        ({"intermediate_size": 130}, ["other shapes", "blk.0.ffn_down.weight (64 x 128 in place of 8,320 numbers)"]),
        ({"vocab_size": 1 << 31}, ["is described as one of"]),
        ({"num_key_value_heads": 0}, ["cannot read"]),
    ],
)
def test_what_is_not_of_its_architecture_is_refused_by_name(
    tmp_path: Path, tiny_model_dir: Path, options: dict[str, Any], says: list[str]
) -> None:
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf", **options)
    with pytest.raises(UserError) as caught:
        resolve_base(str(path), quiet)
    assert all(part in caught.value.message for part in says), caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert converted() == []


def test_a_head_of_its_own_and_tables_of_the_rotary_embedding_may_be_there(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    rows = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    extra = {"output.weight": zeros(rows, 64), "rope_freqs.weight": zeros(8), "rope_factors_long.weight": zeros(8)}
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf", extra=extra)
    config = json.loads((resolve_base(str(path), quiet) / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_a_conversion_whose_weights_were_not_checked_is_made_anew(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf")
    directory = resolve_base(str(path), quiet)
    record, weights = json.loads((directory / RECORD_NAME).read_text()), (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(b"zeros in place of missing weights")
    (directory / RECORD_NAME).write_text(json.dumps({**record, CHECKED: False}))
    assert resolve_base(str(path), quiet) == directory
    assert (directory / "model.safetensors").read_bytes() == weights
    inode = (directory / "model.safetensors").stat().st_ino
    assert resolve_base(str(path), quiet) == directory
    assert (directory / "model.safetensors").stat().st_ino == inode


@cases("write", [write_gguf, write_lfm2_gguf], ids=["by processor", "by mapping"])
def test_a_file_is_converted_to_the_bits_that_transformers_gives(
    tmp_path: Path, tiny_model_dir: Path, write: Callable[[Path, Path], Path]
) -> None:
    path = write(tiny_model_dir, tmp_path / "model.gguf")
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    with mock.patch.object(Spill, "move", autospec=True, side_effect=Spill.move) as move:
        found = AutoModelForCausalLM.from_pretrained(resolve_base(str(path), quiet))
    moved = sum(tensor.numel() for (_, tensor), _ in move.call_args_list)
    assert moved == sum(parameter.numel() for parameter in expected.parameters()), "each once"
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


def test_a_disk_that_fills_up_is_reported_as_such(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tiny_model_dir, tmp_path / "model.gguf")
    monkeypatch.setattr(Spill, "move", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError, match=r"No space left|is full"):
        resolve_base(str(path), quiet)
    assert converted() == []
