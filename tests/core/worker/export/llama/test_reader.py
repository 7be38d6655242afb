from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.helper import Helper
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import merged_model
from tests.waiting import has_ended, wait_for

pytest.importorskip("llama_cpp_py_sync")


class Asked:
    """The reader, asked line by line."""

    def __init__(self, helper: Helper) -> None:
        self.helper = helper
        self._answers = helper.answers()

    def send(self, line: bytes) -> dict[str, Any]:
        self.helper.send(line + b"\n")
        return self.next()

    def next(self) -> dict[str, Any]:
        answer: dict[str, Any] = next(self._answers)
        return answer

    def ask(self, command: str, **args: Any) -> dict[str, Any]:
        answer = self.send(json.dumps({"id": "1", "command": command, "args": args}).encode())
        while "ok" not in answer:
            answer = self.next()
        return answer


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Helper("core.worker.export.llama") as helper:
        yield Asked(helper)


def test_what_is_no_command_is_refused_in_a_sentence(reader: Asked, tmp_path: Path) -> None:
    assert "Not understood" in reader.send(b"no json")["error"]
    assert "Not understood" in reader.send(b'{"id": 1}')["error"]
    refused = reader.ask("dance")
    assert (refused["ok"], refused["error"]) == (False, "There is no command dance.")
    assert "load, generate" in refused["hint"]
    assert reader.ask("generate", messages=[{"role": "user", "content": "?"}])["error"] == "No file is loaded."
    assert "cannot be read" in reader.ask("load", base=str(tmp_path / "nothing.gguf"))["error"]
    failed = reader.ask("load")
    assert failed["error"].startswith("The reader of the GGUF file failed: KeyError")
    assert reader.ask("cancel", id="7")["found"] is False
    assert reader.ask("ping")["pid"] == reader.helper.process.pid


def test_it_ends_with_its_input_and_prints_nothing_of_the_library(
    reader: Asked, tmp_path: Path, tiny_model_dir: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", *merged_model(tiny_model_dir, None))
    assert reader.ask("load", base=str(path))["ok"]
    assert reader.ask("load", base=str(path))["ok"], "another one in its place"
    reader.helper.stdin.close()
    assert reader.helper.process.wait(60) == 0
    assert list(reader.helper.lines()) == []


def test_a_text_is_gone_on_with_and_a_schema_is_refused(reader: Asked, tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", *merged_model(tiny_model_dir, None))
    assert reader.ask("load", base=str(path))["ok"]
    text = "ticket login printer"
    plain = reader.ask("generate", prompt=text, max_new_tokens=4)
    assert plain["prompt_tokens"] == len(reader.ask("tokenize", text=text)["tokens"])
    asked = reader.ask("generate", messages=[{"role": "user", "content": text}], max_new_tokens=4)
    assert asked["prompt_tokens"] > plain["prompt_tokens"]
    refused = reader.ask("generate", prompt=text, json_schema='{"type": "object"}')
    assert refused["error"] == "A GGUF file's answers cannot be held to a JSON Schema."


def test_a_file_that_llama_cpp_does_not_know_is_told_with_its_reason(
    reader: Asked, tmp_path: Path, tiny_model_dir: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", *merged_model(tiny_model_dir, None))
    path.write_bytes(path.read_bytes().replace(b"llama", b"lhama"))
    refused = reader.ask("load", base=str(path))
    assert refused["ok"] is False
    assert "llama.cpp cannot load" in refused["error"]
    assert "lhama" in refused["error"]
    assert reader.ask("ping")["ok"]


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import sys, time; from pathlib import Path; from core.helper import Helper\n"
        'helper = Helper(\'core.worker.export.llama\'); helper.send(b\'{"id": 1, "command": "ping"}\\n\')\n'
        f"next(helper.answers()); Path({str(note)!r}).write_text(str(helper.process.pid)); time.sleep(60)"
    )
    import sys

    with Helper((sys.executable, "-c", program)) as parent:
        wait_for(lambda: note.exists() and note.read_text(), 60, "the reader's pid")
        os.kill(parent.process.pid, signal.SIGKILL)
        number = int(note.read_text())
        wait_for(lambda: has_ended(number), 20, "the end of the reader")
