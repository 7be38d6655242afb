"""Analysis process: the resources of templates and tokenizers are limited, and exceeding them is reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.analysis.result import AnalysisRequest
from core.template.settings import MaskSettings
from tests.core.data.sample_files import json_lines, pairs, write
from tests.tiny_model import CHATML

#: The process with a second for a batch of rows, and less memory.
SCRIPT = (
    "import core.analysis.row_facts as facts; facts.BATCH_SECONDS = 1\n"
    "import core.analysis.process as process; process._MEMORY = 600 << 20\n"
    "process.main()\n"
)


def analyze(request: AnalysisRequest) -> dict[str, Any]:
    """The last line of the process for a request."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(request.to_dict()) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", json_lines(pairs(20)))


def test_a_template_that_takes_for_ever_is_a_sentence(rows: Path, tiny_model_dir: Path) -> None:
    bomb = (
        CHATML + "{% if messages[0].content == 'q5' %}{% set l = range(90000) | list %}"
        "{% for i in range(2000) %}{% set x = l | map('string') | sort %}{% endfor %}{% endif %}"
    )
    answer = analyze(AnalysisRequest((str(rows),), masks=MaskSettings(str(tiny_model_dir), bomb)))
    assert answer["error"] == "The chat template or the tokenizer takes more than 1 s for a few rows."
    assert answer["hint"]


def test_rows_on_which_a_template_fills_the_memory_are_dropped(rows: Path, tiny_model_dir: Path) -> None:
    bomb = (
        CHATML + "{% if messages[0].content == 'q5' %}"
        "{% set l = (['a' * 1048576] * 3000) | map('reverse') | list %}{{ l | length }}{% endif %}"
    )
    answer = analyze(AnalysisRequest((str(rows),), masks=MaskSettings(str(tiny_model_dir), bomb)))
    if "error" in answer:
        # On a busy machine it takes its time before it takes the memory.
        assert "takes more than 1 s" in answer["error"]
    else:
        assert answer["analysis"]["dropped"] == {"template_error": 1}
        assert answer["analysis"]["used"] == 19
