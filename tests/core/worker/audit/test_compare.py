"""Checkpoints compared: every tensor, value and fact, and where the first difference is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.small_files import hash_file
from core.worker.audit.compare import Recorded, compare_checkpoints
from core.worker.checkpoint.checkpoint import Checkpoint, save_tensors

FACTS: dict[str, Any] = {
    "step": 4,
    "token_budget": 64,
    "overrides": {"train.learning_rate": 0.1, "night.deadline": "07:00"},
    "selection": {"best": {"step": 4, "loss": 0.25}},
    "limits": {"seconds": 3.0},
    "config_sha256": "a",
}


def save(directory: Path, weights: torch.Tensor, state: torch.Tensor, **facts: Any) -> Checkpoint:
    (directory / "adapter").mkdir(parents=True)
    save_file({"b.weight": weights, "a.weight": torch.ones(2)}, directory / "adapter/adapter_model.safetensors")
    (directory / "adapter/adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": ["q", "k"]}))
    save_tensors({"state": {0: {"exp_avg": state, "step": torch.tensor(4.0)}}}, directory / "optimizer.pt")
    save_tensors({"torch": torch.arange(4), "python": [3, [1, 2], None]}, directory / "rng.pt")
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    return Checkpoint(directory, FACTS | facts | {"files": files})


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    made = save(tmp_path / "recorded/step-00000004", torch.zeros(2, 3), torch.zeros(3))
    return Recorded(4, made.manifest, made.path)


def test_equal_checkpoints_have_no_difference(recorded: Recorded, tmp_path: Path) -> None:
    facts = {"limits": {"seconds": 9.0}, "overrides": {"train.learning_rate": 0.1}}
    again = save(tmp_path / "again", torch.zeros(2, 3), torch.zeros(3), **facts)
    assert compare_checkpoints(recorded, again) == []


def test_the_first_element_that_differs_is_named_minus_zero_and_nan_too(recorded: Recorded, tmp_path: Path) -> None:
    weights, state = torch.zeros(2, 3), torch.zeros(3)
    weights[1, 2], weights[1, 1] = 5.0, -0.0
    state[2] = float("nan")
    found = compare_checkpoints(recorded, save(tmp_path / "again", weights, state))
    assert [(item.tensor, item.recorded, item.found, item.step) for item in found] == [
        ("b.weight", "0.0", "-0.0", 4),
        ("state.0.exp_avg", "0.0", "nan", 4),
    ]
    assert found[0].what == (
        "checkpoints/step-00000004/adapter/adapter_model.safetensors: b.weight[1, 1] came out otherwise."
    )
    assert found[1].file == "checkpoints/step-00000004/optimizer.pt"


def test_facts_shapes_and_configurations_are_compared(recorded: Recorded, tmp_path: Path) -> None:
    again = save(tmp_path / "again", torch.zeros(3, 2), torch.zeros(3), token_budget=32, config_sha256="b")
    config = again.path / "adapter/adapter_config.json"
    config.write_text(json.dumps({"r": 8, "target_modules": ["k", "q"]}))
    again.manifest["files"]["adapter/adapter_config.json"]["sha256"] = hash_file(config)
    found = compare_checkpoints(recorded, again)
    assert [(item.tensor, item.recorded, item.found) for item in found] == [
        ("config_sha256", '"a"', '"b"'),
        ("token_budget", "64", "32"),
        ("r", "4", "8"),
        ("b.weight", "torch.float32 (2, 3)", "torch.float32 (3, 2)"),
    ]
    assert found[0].what == "The config_sha256 of step 4 came out otherwise."


def test_a_checkpoint_whose_content_is_gone_is_compared_by_its_hashes(recorded: Recorded, tmp_path: Path) -> None:
    gone = Recorded(4, recorded.manifest, tmp_path / "gone/step-00000004")
    assert compare_checkpoints(gone, save(tmp_path / "same", torch.zeros(2, 3), torch.zeros(3))) == []
    (difference,) = compare_checkpoints(gone, save(tmp_path / "again", torch.ones(2, 3), torch.zeros(3)))
    assert "only its SHA-256" in difference.what
    assert difference.recorded != difference.found


def test_a_file_on_disk_that_is_not_the_sealed_one_is_compared_by_its_content(
    recorded: Recorded, tmp_path: Path
) -> None:
    path = recorded.path / "adapter/adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    again = save(tmp_path / "again", torch.zeros(2, 3), torch.zeros(3))
    (difference,) = compare_checkpoints(recorded, again)
    assert difference.tensor in ("a.weight", "b.weight")
    path.write_bytes(b"nonsense")
    (difference,) = compare_checkpoints(recorded, again)
    assert "cannot be read" in difference.what


def test_generators_that_an_earlier_version_did_not_seed_do_not_count(recorded: Recorded, tmp_path: Path) -> None:
    again = save(tmp_path / "again", torch.zeros(2, 3), torch.zeros(3))
    save_tensors({"torch": torch.arange(4), "python": [3, [7, 8], None]}, again.path / "rng.pt")
    again.manifest["files"]["rng.pt"]["sha256"] = hash_file(again.path / "rng.pt")
    (difference,) = compare_checkpoints(recorded, again)
    assert difference.tensor is not None
    assert difference.tensor.startswith("python")
    earlier = Recorded(4, recorded.manifest, recorded.path, is_unseeded=True)
    assert compare_checkpoints(earlier, again) == []
