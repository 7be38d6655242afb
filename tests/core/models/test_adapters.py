"""Adapter checks: directories that are not adapters, and adapters for another base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models.adapters import check_adapter
from tests.cases import cases
from tests.core.models.spoiling import edit_json, write_safetensors


def write_adapter(directory: Path, factors: dict[str, tuple[int, ...]], **config: Any) -> Path:
    """An adapter with factors of these shapes."""
    directory.mkdir(exist_ok=True)
    header: dict[str, Any] = {}
    place = 0
    for name, (rows, columns) in factors.items():
        end = place + 4 * rows * columns
        entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [place, end]}
        header[f"base_model.model.{name}.weight"] = entry
        place = end
    write_safetensors(directory / "adapter_model.safetensors", header, bytes(place))
    edit_json(
        directory / "adapter_config.json", **{"peft_type": "LORA", "base_model_name_or_path": "org/base-7b"} | config
    )
    return directory


UP = "model.layers.0.mlp.up_proj"
FITTING: dict[str, tuple[int, ...]] = {f"{UP}.lora_A": (4, 64), f"{UP}.lora_B": (128, 4)}


def test_what_stands_before_a_layer_does_not_matter(tmp_path: Path, tiny_model_dir: Path) -> None:
    other = {name.replace("model.layers", "model.inner.layers"): shape for name, shape in FITTING.items()}
    check_adapter(write_adapter(tmp_path / "adapter", other), tiny_model_dir)


@cases(
    ("factors", "says"),
    [
        ({f"{UP}.lora_A": (4, 4096)}, "up_proj is 128 x 64 there, and the adapter has 4096 inputs"),
        ({f"{UP}.lora_A": (4, 64), f"{UP}.lora_B": (256, 4)}, "the adapter has 256 outputs"),
        ({"model.layers.0.attention.wq.lora_A": (4, 64)}, r"which has no model\.layers\.0\.attention\.wq"),
    ],
)
def test_an_adapter_for_another_base_names_the_one_it_is_for(
    tmp_path: Path, tiny_model_dir: Path, factors: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        check_adapter(write_adapter(tmp_path / "adapter", factors), tiny_model_dir)
    assert "for another base" in caught.value.message
    assert "org/base-7b" in caught.value.hint


def _config(**changes: Any) -> Callable[[Path], object]:
    return lambda adapter: edit_json(adapter / "adapter_config.json", **changes)


def _without(name: str) -> Callable[[Path], object]:
    return lambda adapter: (adapter / name).unlink()


def _as_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _cut(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@cases(
    ("spoil", "says"),
    [
        (_as_pickle, "pickles only"),
        (_cut, "cut short"),
        (_without("adapter_model.safetensors"), r"has no adapter_model\.safetensors"),
        (_without("adapter_config.json"), r"has no adapter_config\.json"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "is not JSON"),
        (_config(peft_type="PROMPT_TUNING"), "PROMPT_TUNING"),
        (_config(auto_map={"A": "evil.A"}), "has auto_map"),
        (_config(layer_replication=[[0, 10**8]]), "layer_replication"),
        (_config(megatron_config={"a": 1}), "has megatron_config"),
        (_config(r=10**9), "a rank is 1000000000, .* have 4 at most"),
        (_config(r=0), "a rank is 0"),
        (_config(r="4"), "a rank is 4"),
        (_config(rank_pattern={"up_proj": 10**9}), "a rank is 1000"),
        (lambda adapter: write_adapter(adapter, {"model.layers.0.mlp.up_proj.other": (4, 64)}), "has no LoRA factors"),
    ],
)
def test_what_is_no_whole_adapter_is_refused(
    tmp_path: Path, tiny_model_dir: Path, spoil: Callable[[Path], object], says: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", FITTING)
    check_adapter(adapter, tiny_model_dir)
    spoil(adapter)
    with pytest.raises(UserError, match=says) as caught:
        check_adapter(adapter, tiny_model_dir)
    assert caught.value.hint
