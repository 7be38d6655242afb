"""The interpreter of Go templates against the output of Go's own text/template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cases import cases
from tests.core.worker.export.ollama.go_interpreter import GoError, GoTemplate

_RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("go_cases.json").read_text(encoding="utf-8"))
_CASES: list[dict[str, Any]] = _RECORDED["cases"]


@cases("case", _CASES, ids=lambda case: case["template"][:60].replace("\n", " "))
def test_what_go_writes_is_written_and_what_it_refuses_is_refused(case: dict[str, Any]) -> None:
    messages = _RECORDED["conversations"][case["conversation"]]
    if "output" in case and not case.get("refused_here"):
        assert GoTemplate(case["template"]).render(messages) == case["output"]
        return
    with pytest.raises(GoError):
        GoTemplate(case["template"]).render(messages)
