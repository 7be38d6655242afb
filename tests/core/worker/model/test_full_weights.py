"""Weights of the model's own that were trained, put back over their base: all of them, or none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config.schema import MethodSection
from core.errors import UserError
from core.worker.model.full_weights import choose_weights, put_weights, trained_tensors
from core.worker.model.model import load_model
from core.worker.model.safetensors_io import write_tensors
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
