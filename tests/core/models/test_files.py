from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.models.files import check_model_directory, check_safetensors


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def split_weights(model: Path) -> None:
    """The same weights under the names of two shards."""
    whole = model / "model.safetensors"
    shutil.copy(whole, model / "model-1.safetensors")
    whole.rename(model / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_model_is_accepted_in_one_file_and_in_shards(model: Path) -> None:
    assert check_model_directory(model) == model
    split_weights(model)
    assert check_model_directory(model) == model


def _as_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _with_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))


def _with_tokenizer_code(model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))


def _cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def _as_lfs_pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _without_shard(model: Path) -> None:
    split_weights(model)
    (model / "model-1.safetensors").unlink()


def _with_shard_outside(model: Path) -> None:
    split_weights(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def _with_bad_index(model: Path) -> None:
    split_weights(model)
    (model / "model.safetensors.index.json").write_text("{")


def _as_adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_as_pickle, "pickles only"),
        (_with_code, "auto_map"),
        (_with_tokenizer_code, "tokenizer_config.json has auto_map"),
        (_cut, "cut short"),
        (_as_lfs_pointer, "damaged"),
        (_without_shard, "lacks model-1.safetensors"),
        (_with_shard_outside, "outside its directory"),
        (_with_bad_index, "is damaged"),
        (_as_adapter, "an adapter, not a model"),
        (lambda model: (model / "config.json").unlink(), "not a model"),
        (lambda model: (model / "config.json").write_text("[]"), "not a model"),
        (lambda model: (model / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda model: (model / "model.safetensors").unlink(), "has no model.safetensors"),
    ],
)
def test_what_cannot_be_loaded_safely_is_refused(model: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(model)
    with pytest.raises(UserError, match=says) as caught:
        check_model_directory(model)
    assert caught.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64) | st.binary(max_size=40).map(lambda raw: len(raw).to_bytes(8, "little") + raw))
def test_any_other_file_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    try:
        header = json.loads(content[8:])
    except ValueError:
        header = None
    if header == {}:
        check_safetensors(path)  # a file without tensors is valid
        return
    with pytest.raises(UserError):
        check_safetensors(path)
