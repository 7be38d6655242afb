"""Analysis process: the resources of templates and tokenizers are limited, and exceeding them is reported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.analysis.result import AnalysisRequest
from core.template.settings import MaskSettings
from tests.core.data.sample_files import json_lines, pairs, write
from tests.hostile_templates import SLOW
from tests.tiny_model import CHATML

#: The process with a second for a batch of rows, and less memory.
SCRIPT = (
    "import core.analysis.row_facts as facts; facts.BATCH_SECONDS = 1\n"
    "import core.analysis.process as process; process._MEMORY = 600 << 20\n"
    "process.run_job(process.analyze)\n"
)


def run(request: AnalysisRequest, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the process for a request.

    Args:
        request: The request.
        before: Lines of Python that it runs first.
    """
    return subprocess.run(
        [sys.executable, "-c", f"import core.sandbox.limits\n{before}{SCRIPT}"],
        input=json.dumps({"title": "it", "hint": "", "analysis": request.to_dict()}) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def analyze(request: AnalysisRequest) -> dict[str, Any]:
    """The last line of the process for a request."""
    ended = run(request)
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", json_lines(pairs(20)))


def test_a_template_that_takes_for_ever_is_a_sentence(rows: Path, tiny_model_dir: Path) -> None:
    bomb = CHATML + "{% if messages[0].content == 'q5' %}" + SLOW + "{% endif %}"
    answer = analyze(AnalysisRequest((str(rows),), masks=MaskSettings(str(tiny_model_dir), bomb)))
    assert answer["error"] == "The chat template or the tokenizer takes more than 1 s for a few rows."
    assert answer["hint"]


@pytest.mark.long
def test_so_is_one_that_takes_for_ever_before_the_first_row(rows: Path, tiny_model_dir: Path) -> None:
    masks = MaskSettings(str(tiny_model_dir), SLOW)
    answer = analyze(AnalysisRequest((str(rows),), masks=masks))
    assert answer["error"] == "The chat template or the tokenizer takes more than 1 s for a few rows."
    endless = "from core.template.settings import MaskSettings\nMaskSettings.masker = lambda self: sum(range(10**14))\n"
    ended = run(AnalysisRequest((str(rows),), masks=masks), "core.sandbox.limits._GRACE = 0\n" + endless)
    assert ended.returncode == -signal.SIGXCPU, "only the kernel ends what does not return to Python"


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
        assert answer["done"]["dropped"] == {"template_error": 1}
        assert answer["done"]["used"] == 19
