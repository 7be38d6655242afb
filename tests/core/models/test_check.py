"""Model directory checks: unloadable or unsafe models are refused with a clear error before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.models.check import check_adapter, check_model_config, check_model_directory
from core.models.description import PICKLES, WEIGHTS_INDEX, read_record, refuse_foreign
from tests.cases import cases
from tests.core.models.spoiling import (
    copy_model,
    drop_tensors,
    edit_json,
    read_safetensors,
    split_weights,
    write_safetensors,
    write_zeros,
)
from tests.unprivileged import unprivileged

TABLES = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return copy_model(tiny_model_dir, tmp_path / "model")


def test_a_whole_model_is_accepted_in_one_file_and_in_shards(model: Path) -> None:
    """Pickles and code beside safetensors do not matter."""
    (model / "pytorch_model.bin").write_bytes(b"whatever")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    check_model_directory(model)
    split_weights(model)
    check_model_directory(model)


def test_a_hub_cache_of_links_is_accepted(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    check_model_directory(snapshot)
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not a file that is there"):
        check_model_directory(snapshot)


def _as_described(row: dict[str, Any], model: Path) -> None:
    if "text" in row:
        (model / row["file"]).write_text(row["text"])
    else:
        edit_json(model / row["file"], **row["set"])


def _write(text: str, name: str = "config.json") -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


def _without(name: str, replace: Callable[[Path], object] | None = None) -> Callable[[Path], object]:
    def spoil(model: Path) -> None:
        (model / name).unlink()
        if replace is not None:
            replace(model / name)

    return spoil


def _looped(path: Path) -> None:
    path.symlink_to(path)


def _renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda model: (model / old).rename(model / new)


def _cut(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:-10])


def _in_shards(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil(model: Path) -> None:
        split_weights(model)
        change(model)

    return spoil


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _with_wrong_index(model: Path) -> None:
    extra = {"model.norm.extra": "model-1.safetensors"}
    _edit(model / WEIGHTS_INDEX, lambda content: content["weight_map"].update(extra))


def _as_adapter(model: Path) -> None:
    (model / "config.json").unlink()
    edit_json(model / "adapter_config.json", base_model_name_or_path="org/the-base-7b", peft_type="LORA")


def _with_end_outside(model: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        (end,) = [token for token in content["added_tokens"] if token["content"] == "<|im_end|>"]
        end["id"] = 7000
        content["model"]["vocab"].pop("<|im_end|>", None)

    _edit(model / "tokenizer.json", move)


def _with_experts(*numbers: int) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        header, data = read_safetensors(model / "model.safetensors")
        for number in numbers:
            name = f"model.layers.0.mlp.experts.{number}.up_proj.weight"
            header[name] = {"dtype": "U8", "shape": [2], "data_offsets": [len(data), len(data) + 2]}
            data += b"ab"
        write_safetensors(model / "model.safetensors", header, data)

    return spoil


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (partial(_as_described, row), row["says"]) for name, row in TABLES["spoiled"].items()},
    **{f"pickle {end}": (_renamed("model.safetensors", f"a{end}"), "pickles only") for end in PICKLES},
    "weights cut short": (_cut("model.safetensors"), "cut short"),
    "no tensors": (
        lambda model: write_safetensors(model / "model.safetensors", {}, b""),
        "without a single tensor",
    ),
    "a missing shard": (_in_shards(_without("model-1.safetensors")), r"lacks model-1\.safetensors, of 2 files"),
    "a shard cut short": (_in_shards(_cut("model-2.safetensors")), r"model-2\.safetensors"),
    "a damaged index": (_in_shards(_write("{", WEIGHTS_INDEX)), "is not JSON"),
    "an index without metadata": (
        _in_shards(_write('{"weight_map": {"a": "model-1.safetensors"}}', WEIGHTS_INDEX)),
        "it has no metadata",
    ),
    "an empty index": (_in_shards(_write('{"weight_map": {}}', WEIGHTS_INDEX)), "names no weights"),
    "an index of other shards": (_in_shards(_with_wrong_index), r"lacks model\.norm\.extra"),
    "a layer without a part": (lambda model: drop_tensors(model, "layers.1.mlp.up_proj"), "layer 1, mlp.up_proj"),
    "a bigger vocabulary": (
        lambda model: _edit(model / "tokenizer.json", lambda content: content["model"]["vocab"].update(zzzz=5000)),
        "tokens up to 5000",
    ),
    "the end's token outside": (_with_end_outside, "<|im_end|>, the eos_token, is token 7000"),
    "an adapter": (_as_adapter, "an adapter for org/the-base-7b, not a model"),
    "a GGUF": (_renamed("model.safetensors", "model-q4.gguf"), "has no safetensors, but model-q4.gguf"),
    "a deep config.json": (_write("[" * 100_000), "is not JSON"),
    "a rather deep config.json": (_write('{"a":' * 70 + "1" + "}" * 70), "more than 64 levels deep"),
    "a large config.json": (_write(" " * (9 << 20)), "is larger than 8 MiB"),
    "a config.json of empty lists": (_write('{"a":[' + "[]," * 300_000 + "1]}"), "too many objects"),
    "experts with a gap": (_with_experts(0, 2), r"lacks model\.layers\.0\.mlp\.experts\.1\.up_proj\.weight"),
    "no config.json": (_without("config.json"), "no config.json"),
    "no tokenizer": (_without("tokenizer.json"), "no tokenizer"),
    "no weights": (_without("model.safetensors"), r"has no model\.safetensors"),
    "empty": (lambda model: list(map(Path.unlink, model.iterdir())), "is empty"),
    "config.json a loop": (_without("config.json", _looped), "Too many levels of symbolic links"),
    "weights a loop": (_without("model.safetensors", _looped), "not a file that is there"),
    "config.json a pipe": (_without("config.json", os.mkfifo), "it is a named pipe"),
    "weights a pipe": (_without("model.safetensors", os.mkfifo), "not a file that is there"),
}


@cases("name", CASES)
def test_what_cannot_be_loaded_safely_is_refused(tmp_path: Path, tiny_model_dir: Path, name: str) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    spoil, says = CASES[name]
    spoil(model)
    with pytest.raises(UserError, match=says) as caught:
        check_model_directory(model)
    assert caught.value.hint.endswith(".")
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_a_bert_that_writes_and_a_gpt2_for_pretraining_are_no_encoders(model: Path) -> None:
    edit_json(model / "config.json", model_type="bert", architectures=["BertLMHeadModel"], is_decoder=True)
    check_model_config(model)
    edit_json(model / "config.json", model_type="gpt2", architectures=["GPT2ForPreTraining"], is_decoder=None)
    check_model_config(model)


def test_a_token_outside_that_nothing_uses_is_accepted(model: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], "content": "<image>", "id": 9000})

    _edit(model / "tokenizer.json", add)
    check_model_directory(model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + "<image>")
    with pytest.raises(UserError, match="which the chat template writes, is token 9000"):
        check_model_directory(model)


@cases("name", ["config.json", "model.safetensors", "tokenizer.json", ""])
def test_what_may_not_be_read_is_reported_to_be_so(model: Path, name: str) -> None:
    (model / name).chmod(0)
    with pytest.raises(UserError) as caught, unprivileged():
        check_model_directory(model)
    (model / name).chmod(0o755)
    assert caught.value.message == f"{model / name} cannot be read: Permission denied."
    assert caught.value.hint == "Check its permissions."


@cases(("content", "says"), [(row["set"], row["says"]) for row in TABLES["foreign"]])
def test_what_asks_for_the_code_of_others_is_refused_with_its_key(
    tmp_path: Path, tiny_model_dir: Path, content: dict[str, Any], says: str
) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        model = copy_model(tiny_model_dir, tmp_path / name)
        edit_json(model / name, **content)
        with pytest.raises(UserError, match=says) as caught:
            check_model_config(model)
        assert name in caught.value.message
        assert caught.value.hint


@cases("content", TABLES["harmless"])
def test_what_only_looks_like_it_is_accepted(content: dict[str, Any]) -> None:
    description: dict[str, Any] = json.loads(json.dumps(content))
    refuse_foreign(description, Path("config.json"))
    assert description == content, "it is looked at, not changed"
    with pytest.raises(UserError, match=r"inner\.auto_map"):
        refuse_foreign({**description, "inner": {**description, "auto_map": "evil.Model"}}, Path("config.json"))


@cases(
    "content",
    [b"", b"[" * 100_000, b"null", b'{"files": []}', b'{"files": {}}', b'{"files": {"a\\u0000": 1}}', b"\xff"],
)
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "localtune.json").write_bytes(content)
    assert read_record(tmp_path) is None


def write_adapter(directory: Path, factors: dict[str, tuple[int, ...]]) -> Path:
    """An adapter with factors of these shapes."""
    directory.mkdir(exist_ok=True)
    shapes = {f"base_model.model.{name}.weight": shape for name, shape in factors.items()}
    write_zeros(directory / "adapter_model.safetensors", shapes)
    edit_json(directory / "adapter_config.json", peft_type="LORA", base_model_name_or_path="org/base-7b")
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


@cases(
    ("spoil", "says"),
    [
        (_renamed("adapter_model.safetensors", "adapter_model.bin"), "pickles only"),
        (_cut("adapter_model.safetensors"), "cut short"),
        (_without("adapter_model.safetensors"), r"has no adapter_model\.safetensors"),
        (_without("adapter_config.json"), r"has no adapter_config\.json"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "is not JSON"),
        *((partial(_as_described, row), row["says"]) for row in TABLES["adapters"]),
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
