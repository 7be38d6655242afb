from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.helper import Helper
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import merged_model
from tests.core.sandbox.walls import require_landlock

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
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """A reader that is confined to the files of its test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Helper("core.worker.export.llama", str(tmp_path)) as helper:
        yield Asked(helper)


@pytest.fixture
def file(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", *merged_model(tiny_model_dir, None))


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


def test_it_ends_with_its_input_and_prints_nothing_of_the_library(reader: Asked, file: Path) -> None:
    assert reader.ask("load", base=str(file))["ok"]
    assert reader.ask("load", base=str(file))["ok"], "another one in its place"
    reader.helper.stdin.close()
    assert reader.helper.process.wait(60) == 0
    assert list(reader.helper.lines()) == []


def test_a_text_is_gone_on_with_and_a_schema_is_refused(reader: Asked, file: Path) -> None:
    assert reader.ask("load", base=str(file))["ok"]
    text = "ticket login printer"
    plain = reader.ask("generate", prompt=text, max_new_tokens=4)
    assert plain["prompt_tokens"] == len(reader.ask("tokenize", text=text)["tokens"])
    asked = reader.ask("generate", messages=[{"role": "user", "content": text}], max_new_tokens=4)
    assert asked["prompt_tokens"] > plain["prompt_tokens"]
    refused = reader.ask("generate", prompt=text, json_schema='{"type": "object"}')
    assert refused["error"] == "A GGUF file's answers cannot be held to a JSON Schema."
    messages = [{"role": "user", "content": text}]
    tools = [{"type": "function", "function": {"name": "add"}}]
    refused = reader.ask("generate", messages=messages, tools=tools, forced_tools=["add"])
    assert refused["error"] == "A GGUF file's answers cannot be held to calls of tools."
    assert "tool_choice" in refused["hint"]


def test_an_answer_at_the_end_is_continued(reader: Asked, file: Path) -> None:
    assert reader.ask("load", base=str(file))["ok"]
    messages = [{"role": "user", "content": "ticket"}]
    prompt = reader.ask("tokenize", messages=messages)["text"]
    begun = reader.ask("tokenize", messages=[*messages, {"role": "assistant", "content": "login pr"}])["text"]
    assert begun == f"{prompt}login pr"


def test_a_file_that_llama_cpp_does_not_know_is_reported_with_its_reason(reader: Asked, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"llama", b"lhama"))
    refused = reader.ask("load", base=str(file))
    assert refused["ok"] is False
    assert "llama.cpp cannot load" in refused["error"]
    assert "lhama" in refused["error"]
    assert reader.ask("ping")["ok"]


@pytest.mark.long
@pytest.mark.anew
def test_a_process_that_loads_the_library_behind_walls_answers(reader: Asked, file: Path) -> None:
    assert reader.ask("load", base=str(file))["ok"]
    assert reader.ask("generate", prompt="ticket", max_new_tokens=4)["ok"]
    tasks = Path(f"/proc/{reader.helper.process.pid}/task").iterdir()
    walls = {re.sub(r".*\nSeccomp:\s*(\d).*", r"\1", (task / "status").read_text(), flags=re.DOTALL) for task in tasks}
    assert walls == {"2"}, "all threads have the filter"


def test_other_files_than_its_own_are_not_read(
    reader: Asked, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    require_landlock()
    other = tmp_path_factory.mktemp("other") / "tiny.gguf"
    shutil.copy(file, other)
    assert "cannot be read: Permission denied" in reader.ask("load", base=str(other))["error"]
    assert reader.ask("load", base=str(file))["ok"]


def test_memory_is_limited_by_the_file(reader: Asked, file: Path) -> None:
    process = psutil.Process(reader.helper.process.pid)
    reader.ask("ping")
    before = process.rlimit(psutil.RLIMIT_DATA)[0]
    assert 0 < before <= psutil.virtual_memory().total + (1 << 30)
    assert reader.ask("load", base=str(file))["ok"]
    after, most = process.rlimit(psutil.RLIMIT_DATA)
    assert file.stat().st_size < after < 12 << 30
    assert most == before, "no way back"
