"""A mixture as a GGUF file: refused before anything is merged where llama.cpp weighs its experts otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.errors import UserError
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.worker.export import export
from core.worker.export.export import Export
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.families.tiny import write_family


def test_a_mixture_that_llama_cpp_would_weigh_otherwise_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_family("qwen3_moe", tmp_path / "base")
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_topk_prob": False}))
    run = make_trained_run(base, write_rows(tmp_path / "rows.jsonl"))
    monkeypatch.setattr(export, "BaseFingerprint", None)
    with pytest.raises(UserError, match="always normalizes the weights of a token's experts") as refused:
        Export(plan_export(ExportRequest(run.path, "gguf")), lambda *_: None).make()
    assert "merged" in refused.value.hint
