from __future__ import annotations

import json
import shutil
from pathlib import Path

from core.export.gguf.write import GgufOptions, own_templates, stage
from tests.cases import cases
from tests.tiny_model import CHATML


def test_a_tokenizer_model_that_is_missing_comes_from_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    base, staged = tmp_path / "base", tmp_path / "staged"
    for directory in (base, staged):
        directory.mkdir()
    (base / "tokenizer.model").write_bytes(b"pieces")
    stage(tiny_model_dir, GgufOptions(base=base), staged)
    assert (staged / "tokenizer.model").read_bytes() == b"pieces"
    assert (staged / "model.safetensors").samefile(tiny_model_dir / "model.safetensors")
    assert not (tiny_model_dir / "tokenizer.model").exists()


def test_added_tokens_are_written_where_the_converter_looks(tiny_model_dir: Path, tmp_path: Path) -> None:
    stage(tiny_model_dir, GgufOptions(), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {int(number): token for number, token in settings["added_tokens_decoder"].items()}
    assert added[1]["content"] == "<|im_start|>"
    assert added[1]["special"] is True
    assert settings["bos_token"] == "<|im_start|>"
    assert not (tmp_path / "chat_template.jinja").exists()


def test_templates_are_found_in_files_and_in_the_configuration(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    assert own_templates(model) == (CHATML, None)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert own_templates(model) == (CHATML, "tools")
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert own_templates(model) == ("a", "tools")


@cases(
    ("values", "scored"),
    [
        ({"model_type": "deepseek_v3"}, "sigmoid"),
        ({"model_type": "glm4_moe_lite"}, "sigmoid"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "softmax"),
        ({"model_type": "qwen3_moe"}, None),
    ],
)
def test_how_experts_are_scored_is_written_where_only_the_class_knows(
    tiny_model_dir: Path, tmp_path: Path, values: dict[str, str], scored: str | None
) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text()) | values
    (model / "config.json").write_text(json.dumps(config))
    staged = tmp_path / "staged"
    staged.mkdir()
    stage(model, GgufOptions(), staged)
    assert json.loads((staged / "config.json").read_text()).get("scoring_func") == scored
    assert json.loads((model / "config.json").read_text()) == config
