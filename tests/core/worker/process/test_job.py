from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import UserError
from core.export.gguf.checks import has_library
from core.export.process import run_process
from core.launch.launcher import worker_environment
from tests.core.sandbox.walls import require_landlock
from tests.progress import quiet
from tests.waiting import wait_for

#: Starts a process of an export, tells it no job, and says which it is.
PARENT = """
import sys
from core.helper import Helper
helper = Helper("core.worker.export.gguf.quantize")
print(helper.process.pid, flush=True)
sys.stdin.read()
"""


def job(tmp_path: Path, **values: Any) -> dict[str, Any]:
    """A job of the quantizer."""
    common = {
        "title": "quantize the model",
        "quant": "Q4_0",
        "importance": None,
        "embeddings": None,
        "expected": 1,
    }
    return {
        **common,
        "source": str(tmp_path / "none.gguf"),
        "target": str(tmp_path / "q.gguf"),
        "hint": "Do so.",
        **values,
    }


@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_a_failing_library_is_told_in_a_sentence(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=r"^llama\.cpp's quantizer failed to write Q4_0: .*No such file"):
        run_process(
            "core.worker.export.gguf.quantize",
            job(tmp_path),
            "the quantizer",
            lambda detail, _done, _total: told.append(detail),
        )
    assert next(said for said in told if said != "starting the quantizer") == "loading the quantizer"


@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_any_other_failure_is_told_with_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(UserError) as failed:
        run_process("core.worker.export.gguf.quantize", job(tmp_path, quant="Q99"), "the quantizer", quiet)
    assert failed.value.message.startswith("It is not possible to quantize the model: ")
    assert "Q99" in failed.value.message
    assert failed.value.hint == "Do so."


@pytest.mark.skipif(not has_library(), reason="llama-cpp-py-sync is not installed")
def test_a_job_with_a_limit_of_memory_uses_only_the_files_that_it_names(tmp_path: Path) -> None:
    require_landlock()
    source = tmp_path / "none.gguf"
    source.write_bytes(b"no GGUF file")
    for reads, said in (([], "Permission denied"), ([str(source)], "failed to write Q4_0")):
        confined = job(tmp_path, memory=4 << 30, reads=reads, writes=[])
        with pytest.raises(UserError, match=r"^llama\.cpp's quantizer failed") as failed:
            run_process("core.worker.export.gguf.quantize", confined, "the quantizer", quiet)
        assert said in failed.value.message
        assert ("Permission denied" in failed.value.message) is not bool(reads)


@pytest.mark.anew
def test_a_module_that_cannot_start_is_told_by_its_last_words() -> None:
    with pytest.raises(
        UserError, match=r"^The quantizer ended with code 1: .*No module named core\.worker\.export\.no"
    ):
        run_process("core.worker.export.no", {"title": "a"}, "the quantizer", quiet)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=worker_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 60, "the child's end")


@pytest.mark.long
@pytest.mark.anew
def test_torch_is_imported_behind_walls() -> None:
    job = {"title": "import torch", "hint": "Do so.", "memory": 4 << 30}
    assert run_process("tests.core.worker.process.imports_torch", job, "the import", quiet)["version"]
