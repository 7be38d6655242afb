"""Weights of the model's own that were trained, put back over their base: all of them, or none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.config.schema import MethodSection
from core.errors import UserError
from core.worker.model.full_weights import choose_weights, put_weights, trained_tensors
from core.worker.model.model import load_model
from core.worker.model.safetensors_io import read_tensors, tensor_names, write_tensors
from tests.cases import cases


def load(base: Path) -> Any:
    return load_model(base, method="full", precision="fp32", device="cpu").model


def trained(base: Path, method: Any) -> dict[str, torch.Tensor]:
    """The weights of a run, a little different from the base."""
    model = choose_weights(load(base), MethodSection(name=method, trainable_layers=1), seed=0)
    return {name: parameter.detach() + 1 for name, parameter in trained_tensors(model).items()}


@cases("method", ["full", "freeze"])
def test_what_was_trained_is_put_over_the_base(tmp_path: Path, tiny_model_dir: Path, method: str) -> None:
    weights, model = trained(tiny_model_dir, method), load(tiny_model_dir)
    write_tensors(tmp_path / "trained.safetensors", weights)
    put_weights(model, tmp_path / "trained.safetensors", method)
    own = dict(model.named_parameters())
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())


UP = "model.layers.1.mlp.up_proj.weight"


@cases(
    ("method", "change", "says"),
    [
        ("full", lambda weights: weights.pop(UP), rf"lacks weights that were trained: {re.escape(UP)}"),
        ("freeze", lambda weights: weights.pop(UP), rf"lacks weights that were trained: {re.escape(UP)}"),
        ("full", lambda weights: weights.update(extra=torch.ones(3)), "does not fit this model: extra"),
    ],
)
def test_missing_and_unknown_weights_are_named(
    tmp_path: Path, tiny_model_dir: Path, method: str, change: Callable[[dict[str, torch.Tensor]], object], says: str
) -> None:
    weights = trained(tiny_model_dir, method)
    change(weights)
    write_tensors(tmp_path / "trained.safetensors", weights)
    with pytest.raises(UserError, match=says):
        put_weights(load(tiny_model_dir), tmp_path / "trained.safetensors", method)


def some() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5).to(torch.bfloat16),
        "b.weight": torch.randn(4, 6).t(),
        "c": torch.tensor(1.5),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }


def test_written_tensors_are_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", some())
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == some().keys() == set(tensor_names(tmp_path / "x.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in some().items())
    into = {name: torch.zeros_like(tensor) for name, tensor in some().items()}
    read_tensors(tmp_path / "x.safetensors", into)
    assert all(torch.equal(into[name], tensor) for name, tensor in some().items())


@cases(
    ("into", "says"),
    [
        ({"a": torch.zeros(2)}, "b"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "d": torch.zeros(1)}, "d"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"b is \(3,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.bfloat16)}, "float32"),
    ],
)
def test_other_names_shapes_and_dtypes_are_refused(tmp_path: Path, into: dict[str, torch.Tensor], says: str) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(UserError, match=says):
        read_tensors(tmp_path / "x.safetensors", into)


@cases("content", [b"", b"\xff" * 20, b"{}"])
def test_a_damaged_or_missing_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        tensor_names(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path / "missing.safetensors", {})


def test_a_full_disk_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), {"a": torch.ones(100_000)})


def test_a_share_without_rows_is_passed_over(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1, 4), "b": torch.ones(3, 4)}, tmp_path / "x.safetensors")
    into = {"a": torch.empty(0, 4), "b": torch.zeros(1, 4)}
    read_tensors(tmp_path / "x.safetensors", into, rows={"a": slice(1, 1), "b": slice(2, 3)}.__getitem__)
    assert into["b"].tolist() == [[1.0] * 4]
