from __future__ import annotations

import io
import json
from typing import Any

import pytest

from core.worker.process.answers import Answers


def told(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_is_told_at_a_limited_rate_but_each_activity_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.process.answers.time.monotonic", lambda: 7.0)
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
