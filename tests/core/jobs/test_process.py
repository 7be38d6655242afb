from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.jobs.job import call
from core.jobs.process import Answers, answer_to, growing
from tests.cases import cases
from tests.waiting import wait_for


class PanicException(BaseException):
    """A panic of a library in Rust."""


def told(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_is_reported_at_a_limited_rate_but_each_activity_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.jobs.process.time.monotonic", lambda: 7.0)
    stream = io.BytesIO()
    answers = Answers(stream)
    answers.progress("starting")
    for done in range(1, 9):
        answers.progress("merging", done, 8)
    answers.progress("merging", None, None)
    assert [tuple(message["progress"].values()) for message in told(stream)] == [
        ("starting", None, None),
        ("merging", 1, 8),
        ("merging", 8, 8),
    ]


def test_a_message_is_a_line_of_strict_json() -> None:
    stream = io.BytesIO()
    answers = Answers(stream)
    answers.send({"result": "a\nb é"})
    assert stream.getvalue() == b'{"result": "a\\nb \\u00e9"}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        answers.send({"result": float("nan")})
    assert len(told(stream)) == 1


@cases(
    ("error", "message", "hint"),
    [
        (UserError("No.", "Try another."), "No.", "Try another."),
        (MemoryError(), "The export ran out of memory.", "Close other programs. Do so."),
        (KeyError("x"), "The export failed: KeyError: 'x'.", "Do so."),
        (PanicException("called `unwrap()`\nat x"), "The export failed: PanicException: called `unwrap()`.", "Do so."),
        (OSError(errno.EIO, "broken"), "The export failed: OSError: [Errno 5] broken.", "Do so."),
        (OSError(errno.ENOSPC, "full"), "is full", ""),
        (OSError(errno.EROFS, "read-only"), "/some cannot be written", ""),
    ],
)
def test_a_failure_is_a_sentence(error: BaseException, message: str, hint: str) -> None:
    def work(_: dict[str, Any], __: Answers) -> dict[str, Any]:
        raise error

    request = {"title": "the export", "hint": "Do so.", "target": "/some/file"}
    answer = answer_to(work, request, Answers(io.BytesIO()))
    assert message in answer["error"]
    assert hint in answer["hint"]


def test_a_file_that_grows_is_reported(tmp_path: Path) -> None:
    stream = io.BytesIO()
    (tmp_path / "a").write_bytes(b"x" * 7)
    with growing(Answers(stream), "writing", tmp_path / "a", 9):
        wait_for(lambda: told(stream), 10, "the first report")
    assert told(stream)[0] == {"progress": {"activity": "writing", "done": 7, "total": 9}}


@pytest.mark.long
@pytest.mark.anew
def test_torch_is_imported_behind_walls() -> None:
    assert call("import torch", "tests.core.jobs.imports_torch", {"memory": 4 << 30})["version"]
