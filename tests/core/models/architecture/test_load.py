"""Architecture loading by name: directories with and without weights, prepared models, the hub cache, missing ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.errors import UserError
from core.models.architecture.load import load_architecture, locate_model
from tests.cases import cases
from tests.core.models.architecture import published
from tests.families.tiny import write_family
from tests.measured_here import measured_here

__all__ = ["measured_here"]

SMALL = {**published.SMOLLM2_135M, "num_hidden_layers": 1}


def write_model(directory: Path, config: Any = SMALL) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_header(path: Path, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    """A safetensors file as long as it says, without anything in it."""
    entries, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for dimension in shape:
            size *= dimension
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)


def test_a_directory_with_nothing_but_a_configuration_is_enough(tmp_path: Path) -> None:
    architecture = load_architecture(locate_model(str(write_model(tmp_path / "m"))))
    assert architecture.depth == 1
    assert architecture.checkpoint is None


def test_weights_count_exactly_over_all_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    plain = load_architecture(model)
    write_header(model / "model-1.safetensors", {"model.embed_tokens.weight": [49152, 576]})
    rest = plain.parameters - 49152 * 576
    write_header(model / "model-2.safetensors", {"model.layers.0.all": [rest], "model.vision.weight": [1000]})
    architecture = load_architecture(model)
    # Tensors beyond the structure are of parts that are not loaded.
    assert architecture.parameters == plain.parameters
    assert architecture.checkpoint is not None
    assert architecture.checkpoint.parameters == plain.parameters + 1000
    assert architecture.checkpoint.dtype == "BF16"
    assert architecture.checkpoint.largest == 49152 * 576 * 2
    assert architecture.checkpoint.bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_a_tied_head_that_is_saved_is_not_counted_twice(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    plain = load_architecture(model)
    shapes = {"lm_head.weight": [49152, 576], "everything": [plain.parameters]}
    write_header(model / "model.safetensors", shapes)
    assert load_architecture(model).parameters == plain.parameters


@cases("damage", [b"", b"\xff" * 16, struct.pack("<Q", 5) + b"[1,2]", struct.pack("<Q", 9) + b'{"a": {}}'])
def test_damaged_weights_leave_what_the_configuration_says(tmp_path: Path, damage: bytes) -> None:
    model = write_model(tmp_path / "m")
    (model / "model.safetensors").write_bytes(damage)
    assert load_architecture(model).checkpoint is None


@cases(
    "name",
    [
        "meta-llama/Nowhere-8B",
        "nowhere",
        "../nowhere/at/all",
        "/nowhere\x1b]52;c;x\x07",
        "~nobody/m",
        "a" * 5000,
        "a\0b",
    ],
)
def test_a_model_that_is_not_here_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="is not on this machine") as refusal:
        locate_model(name)
    assert "\x1b" not in refusal.value.message
    assert "config.json" in refusal.value.hint


@pytest.mark.slow
def test_towers_are_told_of_families_that_are_measured(tmp_path: Path) -> None:
    model = write_family("qwen3_5", tmp_path / "m")
    names = load_file(model / "model.safetensors")
    towers = sum(tensor.nbytes for name, tensor in names.items() if ".visual." in name)
    found = load_architecture(model)
    assert found.description
    assert found.towers is not None
    assert (found.towers.kinds, found.towers.bytes, found.towers.is_exact) == (("vision",), towers, True)
    assert found.checkpoint is not None
    assert found.checkpoint.bytes == (model / "model.safetensors").stat().st_size - towers


def test_directories_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_architecture(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        load_architecture(tmp_path)
    for content in ("{", "[]", "\xff", "[" * 100_000):
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=r"config\.json is (damaged|not)"):
            load_architecture(tmp_path)
