"""Commands with a chat template that never ends: each ends with a sentence. ``train`` and ``chat``, whose templates
are rendered by other processes, are in the tests of these.
"""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from core.analysis import job
from core.analysis.result import Analysis, AnalysisRequest
from core.analysis.survey import survey
from core.commands import live_line
from core.commands.live_line import busy
from core.template import jinja_sandbox
from tests.cases import cases
from tests.hostile_templates import ENDLESS_OPERATIONS, SLOW

from .conftest import CommandLine, wait_for

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
ENDLESS = ENDLESS_OPERATIONS["=="]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is done in this process, and a rendering has little time."""
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.02)
    monkeypatch.setattr("core.sandbox.pool.is_confined", lambda: True)

    def analyze(request: AnalysisRequest, _: Any = None) -> Analysis:
        return survey(request)

    monkeypatch.setattr(job, "analyze", analyze)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendering has time, and few steps."""
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 60)
    monkeypatch.setattr(jinja_sandbox, "STEPS", 20_000)


def make(tmp_path: Path, tiny_model_dir: Path, template: str) -> tuple[str, str, str]:
    """Rows, a model with a template, and a configuration for both."""
    rows, model, config = tmp_path / "rows.jsonl", tmp_path / "model", tmp_path / "run.toml"
    rows.write_text(json.dumps({"messages": TALK}) + "\n")
    shutil.copytree(tiny_model_dir, model)
    (model / "chat_template.jinja").write_text(template)
    config.write_text(
        f"[model]\nbase = {json.dumps(str(model))}\n[data]\ntrain = {json.dumps(str(rows))}\n"
        '[hardware]\ndevice = "cpu"\n'
    )
    return str(rows), str(model), str(config)


def test_time_refuses_the_template(cli: CommandLine, tmp_path: Path, tiny_model_dir: Path) -> None:
    rows, model, config = make(tmp_path, tiny_model_dir, SLOW)
    for words, code in (
        (("data", rows, "--model", model), 1),
        (("data", rows, "--model", model, "--row", "1", "--json"), 1),
        (("data", "--config", config), 1),
        (("plan", config), 0),
        (("plan", config, "--lengths", "always"), 1),
        (("init", "--model", model, "--data", rows, "--out", str(tmp_path / "new.toml")), 1),
    ):
        result = cli(*words)
        assert result.code == code, (words, result)
        assert "The chat template takes more than 0.02 s for one conversation" in result.err, (words, result)
        assert "internal error" not in result.err
    assert not (tmp_path / "new.toml").exists()


def test_what_a_queue_cannot_estimate_is_queued_all_the_same(
    cli: CommandLine, tmp_path: Path, tiny_model_dir: Path
) -> None:
    for number, template in enumerate((SLOW, ENDLESS)):
        (tmp_path / str(number)).mkdir()
        _, _, config = make(tmp_path / str(number), tiny_model_dir, template)
        result = cli("queue", "add", config, "--set", "train.max_steps=5")
        assert result.code == 0, result
        assert "how long it takes" in result.err or "about" in result.err


@pytest.mark.usefixtures("few_steps")
@cases("name", ["in a list", "rfind", "get"])
def test_an_operation_without_an_end_costs_the_row(
    name: str, cli: CommandLine, tmp_path: Path, tiny_model_dir: Path
) -> None:
    rows, model, config = make(tmp_path, tiny_model_dir, ENDLESS_OPERATIONS[name])
    result = cli("data", rows, "--model", model, "--json")
    assert result.code == 0, result
    assert result.json["dropped"] == {"template_error": 1}
    assert "far more steps" in result.json["problems"][0]["detail"]
    assert cli("plan", config).code == 0
    assert cli("init", "--model", model, "--data", rows, "--out", str(tmp_path / "new.toml")).code == 0


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_busy_command_says_with_what_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_line, "BUSY_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        with busy("reading the first rows"):
            wait_for(terminal.getvalue, "the line")
    assert terminal.getvalue().count("reading the first rows …") == 1
    assert terminal.getvalue().endswith("\r\x1b[K"), "and takes the line away"
    # Elsewhere it says nothing.
    with busy("reading the first rows"):
        assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
