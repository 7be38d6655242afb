"""The harness as another program: a stand-in with its command line and its files."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.evaluation.lm_eval import Figure, HarnessModel, HarnessRun, plain_model, read_results, read_tasks
from core.evaluation.record import folder_of, list_records
from core.runs.record.store import Run
from tests.cases import cases

#: Writes the output of lm-eval 0.4.13, and its own command line.
STAND_IN = """#!{python}
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "model_args", "tasks", "output_path", "limit", "include_path", "device"):
    parser.add_argument(f"--{{name}}")
parser.add_argument("--apply_chat_template", nargs="?", const=True)
args = parser.parse_args()
mode = os.environ.get("STAND_IN", "")
print("loading the model \\x1b[2J", flush=True)
if mode == "fail":
    print("Traceback (most recent call last):", file=sys.stderr)
    sys.exit("ConnectionError: Couldn't reach the Hub \\x1b[2J")
out = pathlib.Path(args.output_path) / "model"
out.mkdir(parents=True)
if mode == "nothing":
    sys.exit()
told = {{name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "PYTHONPATH")}}
pathlib.Path(os.environ["STAND_IN_CALL"]).write_text(json.dumps({{"args": vars(args), "environment": told}}))
results = {{
    task: {{
        "alias": task, "acc,none": 0.5, "acc_stderr,none": 0.05,
        "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A", "samples": 10,
    }}
    for task in args.tasks.split(",")
}}
file = out / "results_2026-01-01T00-00-00.json"
file.write_text(json.dumps({{"results": results, "lm_eval_version": "0.4.13"}}))
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in on the path; the file in which it says how it was called."""
    program = tmp_path / "bin" / "lm_eval"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_CALL", str(tmp_path / "call.json"))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecretsecret")
    return tmp_path / "call.json"


def model(directory: Path) -> HarnessModel:
    for name in ("base", "adapter"):
        (directory / name).mkdir(exist_ok=True)
    return HarnessModel("run@3", directory / "base", directory / "adapter", directory / "adapter")


def test_nothing_is_written_through_a_link(call: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder_of(None).parent.mkdir(parents=True, exist_ok=True)
    folder_of(None).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link"):
        HarnessRun(model(tmp_path), ["mine"]).job().run()
    assert not call.exists()
    assert list(elsewhere.iterdir()) == []


def test_it_is_started_offline_and_its_figures_are_kept(call: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    job = HarnessRun(model(tmp_path), ["arc_easy", "mine"], 10, tmp_path, "cpu").job()
    result = job.run(lambda at: lines.append(at.activity))
    told: Any = json.loads(call.read_text())
    adapter = tmp_path / "adapter"
    assert told["args"] | {"output_path": ""} == {
        "model": "hf",
        "model_args": f"pretrained={tmp_path / 'base'},peft={adapter},tokenizer={adapter},dtype=auto",
        "tasks": "arc_easy,mine",
        "output_path": "",
        "limit": "10",
        "include_path": str(tmp_path),
        "device": "cpu",
        "apply_chat_template": True,
    }
    environment = told["environment"]
    assert environment == {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_TOKEN": None, "PYTHONPATH": None}
    assert result.figures[:2] == (
        Figure("arc_easy", "acc", "none", 0.5, 0.05),
        Figure("arc_easy", "exact_match", "strict-match", 0.25, None),
    )
    assert result.version == "0.4.13"
    kept = json.loads(result.path.read_text())
    assert (kept["model"], kept["tasks"], len(kept["figures"])) == ("run@3", ["arc_easy", "mine"], 4)
    assert os.listdir(result.path.parent) == [result.path.name], "its own files are gone"
    assert list_records(result.path.parent) == [], "it is no prompt set"
    assert lines[0].startswith("loading the model")
    assert "\x1b" not in lines[0]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("fail", "lm-eval failed: its process ended with code 1; its log ends with: ConnectionError"),
        ("nothing", "no results that can be read"),
    ],
)
def test_a_failure_is_a_sentence(
    call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, said: str
) -> None:
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(UserError) as refused:
        HarnessRun(model(tmp_path), ["arc_easy"]).job().run()
    assert said in refused.value.message
    assert "\x1b" not in refused.value.message
    assert "\n" not in refused.value.message


def test_without_it_the_way_to_have_it_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = Run(tmp_path / "run")
    run.path.mkdir()
    job = HarnessRun(replace(model(tmp_path), run=run), ["arc_easy"]).job()
    with pytest.raises(UserError, match="lm-eval is not installed") as refused:
        job.run()
    assert "uv tool install" in refused.value.hint
    assert os.listdir(run.path) == []


def test_a_path_that_it_would_read_otherwise_is_refused(call: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    odd = HarnessModel("odd", tmp_path / "a,b=c", run=run)
    with pytest.raises(UserError, match="cannot be told the path"):
        HarnessRun(odd, ["arc_easy"]).job().run()
    assert os.listdir(run.path) == []


@cases("text", ["", " , ", "a b", "--model", "a;b", "x" * 300])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_tasks(text)


def test_what_is_no_directory_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for name in (str(tmp_path), str(tmp_path / "x.gguf"), "no-such-model"):
        with pytest.raises(UserError, match="is not a directory of a model"):
            plain_model(name)


@cases("text", ["", "[]", "{}", '{"results": 3}', '{"results": {"a": {"acc,none": "x"}}}'])
def test_results_that_cannot_be_read_are_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "results_1.json").write_text(text)
    with pytest.raises(UserError):
        read_results(tmp_path)
