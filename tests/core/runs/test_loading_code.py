"""Code that uses a run's result outside the app."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from core.runs.catalog.trained import python_code
from tests.cases import cases


def strings(code: str) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_an_adapter_is_loaded_on_the_base_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    code = python_code(tmp_path, is_model=False)
    assert strings(code) == {"/models/base", str(tmp_path)}
    assert "PeftModel.from_pretrained(model, adapter)" in code
    assert "AutoTokenizer.from_pretrained(base)" in code, "a checkpoint has no tokenizer of its own"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert "AutoTokenizer.from_pretrained(adapter)" in python_code(tmp_path, is_model=False)


def test_a_whole_model_needs_no_base(tmp_path: Path) -> None:
    code = python_code(tmp_path, is_model=True)
    assert strings(code) == {str(tmp_path)}
    assert "peft" not in code


@cases("content", ["", "{", '{"base_model_name_or_path": 3}', "[]"])
def test_a_damaged_adapter_is_no_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    assert "the base model" in strings(python_code(tmp_path, is_model=False))


@cases("name", ['a"b', "a\\b", "a\nb", "ä日", "a'b"])
def test_any_path_is_python(name: str) -> None:
    path = Path("/runs") / name
    assert str(path) in strings(python_code(path, is_model=True))


def test_the_code_loads_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    found: dict[str, object] = {}
    exec(python_code(tmp_path / "adapter", is_model=False), found)  # noqa: S102
    assert type(found["model"]).__name__.startswith("PeftModel")
