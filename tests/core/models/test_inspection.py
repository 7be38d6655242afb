"""Model inspection: facts of whole models, and errors for damaged ones."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from core.models.inspection import READ_ARCHITECTURES, STARTER_FACTS, UNREAD_TYPES
from core.models.sandboxed import inspect_model
from tests.cases import cases
from tests.core.models.spoiling import copy_model, edit_json, split_weights
from tests.core.worker.model.gguf_files import write_gguf


@pytest.fixture(scope="module")
def gguf(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_directory_is_recognized_by_its_headers(tiny_model_dir: Path) -> None:
    facts = inspect_model(tiny_model_dir)
    assert (facts.flaw, facts.is_incomplete, facts.quantization) == ("", False, None)
    assert (facts.family, facts.dtype, facts.positions, facts.has_template) == ("llama", "BF16", 512, True)
    assert facts.architecture is not None
    assert facts.parameters == facts.architecture.parameters
    assert facts.bytes == (tiny_model_dir / "model.safetensors").stat().st_size


def test_a_gguf_file_is_recognized_by_its_header(gguf: Path, tiny_model_dir: Path) -> None:
    facts = inspect_model(gguf)
    assert (facts.flaw, facts.family, facts.dtype, facts.has_template) == ("", "llama", "F32", True)
    assert facts.parameters == inspect_model(tiny_model_dir).parameters
    assert facts.architecture is not None
    assert facts.positions == 512


def test_a_model_without_a_template_says_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    (model / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(model / "tokenizer_config.json", chat_template=None)
    assert not inspect_model(model).has_template
    edit_json(model / "tokenizer_config.json", chat_template="{{ messages }}")
    assert inspect_model(model).has_template


def test_missing_files_are_distinguished_from_damaged_ones(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    split_weights(model)
    assert inspect_model(model).flaw == ""
    (model / "model-2.safetensors").unlink()
    part = inspect_model(model)
    assert part.is_incomplete
    assert "lacks model-2.safetensors" in part.flaw
    # Facts from the description are known all the same.
    assert part.parameters == inspect_model(tiny_model_dir).parameters
    damaged = copy_model(tiny_model_dir, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    cut = inspect_model(damaged)
    assert not cut.is_incomplete
    assert "is cut short" in cut.flaw
    assert cut.hint
    # A download that was broken off leaves a link that leads nowhere.
    weights.unlink()
    weights.symlink_to(tmp_path / "blobs" / "none")
    assert inspect_model(damaged).is_incomplete


@cases(
    ("changes", "says"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "brings Python code of its own"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "not a causal language model"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"vocab_size": 7}, "do not match config.json"),
        ({"model_type": "newest", "architectures": ["NewestForCausalLM"]}, "is of the architecture newest"),
    ],
)
def test_what_a_run_would_refuse_is_a_flaw(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    edit_json(model / "config.json", **changes)
    facts = inspect_model(model)
    assert says in facts.flaw
    if changes.get("model_type") == "newest":
        # Listed without its memory.
        assert (facts.architecture, facts.family) == (None, "newest")
        assert facts.parameters


@cases("raw", [b"", b"{", b"[]", b"\xff" * 99, b"[" * 100_000, b'{"model_type": 5}'])
def test_descriptions_of_any_bytes_are_a_sentence(tiny_model_dir: Path, tmp_path: Path, raw: bytes) -> None:
    model = copy_model(tiny_model_dir, tmp_path / "model")
    (model / "config.json").write_bytes(raw)
    assert inspect_model(model).flaw
    gguf = tmp_path / "odd.gguf"
    gguf.write_bytes(raw)
    assert inspect_model(gguf).flaw


def test_a_hostile_header_is_bounded(tmp_path: Path, gguf: Path) -> None:
    path = tmp_path / "immense.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))
    assert "damaged" in inspect_model(path).flaw
    raw = gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(raw[:-100])
    cut = inspect_model(tmp_path / "cut.gguf")
    assert "cut short" in cut.flaw
    assert cut.parameters == inspect_model(gguf).parameters
    assert inspect_model(tmp_path / "none").flaw


def test_an_architecture_that_is_not_read_from_a_gguf_is_reported(tmp_path: Path, gguf: Path) -> None:
    path = Path(shutil.copy(gguf, tmp_path / "other.gguf"))
    length = struct.pack("<Q", 5)
    path.write_bytes(path.read_bytes().replace(b"llama.", b"lxama.").replace(length + b"llama", length + b"lxama"))
    facts = inspect_model(path)
    assert "is of the architecture lxama, which is not read from GGUF files" in facts.flaw
    assert facts.architecture is None


def test_what_is_read_from_gguf_files_is_what_transformers_reads() -> None:
    from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # llama.cpp's names that the loader maps to its own.
    renamed = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
    no_text_model = {"general", "tokenizer", "t5", "umt5"}
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_ARCHS} - no_text_model
    assert {renamed.get(name, name) for name in READ_ARCHITECTURES} == known


def test_what_cannot_be_dequantized_is_what_the_library_cannot() -> None:
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import _type_traits

    plain = {"F32", "F16"}
    assert {kind.name for kind in GGML_QUANT_SIZES if kind not in _type_traits} - plain == UNREAD_TYPES


def test_the_starter_model_is_known_before_it_is_there(starter_model_dir: Path) -> None:
    facts = inspect_model(starter_model_dir)
    assert facts.flaw == ""
    for name in ("parameters", "dtype", "has_template", "family", "positions"):
        assert getattr(STARTER_FACTS, name) == getattr(facts, name)
    config = json.loads((starter_model_dir / "config.json").read_text())
    assert STARTER_FACTS.architecture is not None
    assert STARTER_FACTS.architecture.hidden == config["hidden_size"]
