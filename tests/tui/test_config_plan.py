"""The memory plan of the configuration being edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.document import ConfigDocument
from core.errors import UserError
from tui.panes.config_plan import plan_document

LLAMA = """{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
  "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
  "max_position_embeddings": 8192, "tie_word_embeddings": false
}"""


def document(directory: Path, model: str, text: str = "") -> ConfigDocument:
    (directory / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return ConfigDocument(f'data.train = "rows.jsonl"\nmodel.base = "{model}"\n{text}', directory / "mine.toml")


def model(directory: Path, config: str = LLAMA) -> Path:
    (directory / "base").mkdir()
    (directory / "base" / "config.json").write_text(config)
    return directory / "base"


def test_the_parts_make_up_the_total(tmp_path: Path) -> None:
    view = plan_document(document(tmp_path, str(model(tmp_path)), 'hardware.device = "cpu"\n'))
    assert view is not None
    assert sum(size for _, size in view.parts) == view.total
    assert view.total > 5 << 30
    assert view.limit is not None
    assert view.fits == (view.total <= view.limit) or view.fits


def test_a_gpu_that_is_not_here_is_planned_without_a_limit(tmp_path: Path) -> None:
    view = plan_document(document(tmp_path, str(model(tmp_path)), 'hardware.device = "cuda"\n'))
    assert view is not None
    assert view.limit is None
    assert view.fits is None


def test_what_cannot_be_planned_yet_has_no_plan(tmp_path: Path) -> None:
    assert plan_document(document(tmp_path, "not-here")) is None
    (tmp_path / "tokenizer").mkdir()
    assert plan_document(document(tmp_path, str(tmp_path / "tokenizer"))) is None
    assert plan_document(document(tmp_path, str(model(tmp_path)), "train.epochs = -1\n")) is None


def test_a_model_of_an_unknown_shape_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        plan_document(document(tmp_path, str(model(tmp_path, '{"model_type": "nothing-known"}'))))
