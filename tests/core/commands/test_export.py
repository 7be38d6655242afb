from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from core import paths
from core.config.schema import Config, DataSection, ModelSection
from core.export import job
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.core.commands.conftest import CommandLine


@pytest.fixture
def run(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run with a result, and exports that do as a variable says."""
    monkeypatch.setattr(job, "PROGRAM", "tests.core.export.scripted_export")
    monkeypatch.setenv("SCRIPTED_EXPORT", "result")
    made = create_run(Config(model=ModelSection(base="/models/base"), data=DataSection(train="/rows.jsonl")), "tickets")
    RunState(state="finished", step=30, total_steps=30, updated=time.time()).write(made.state_path)
    made.adapter_path.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (made.adapter_path / name).write_text("{}")
    return made


def test_an_export_is_reported_with_its_files_a_verdict_and_lines_to_use_it(cli: CommandLine, run: Run) -> None:
    result = cli.ok("export", "tickets", "--to", "gguf", "--quant", "q4_k_m")
    assert f"{run.id} to {paths.exports_dir()}/{run.id}-gguf-q4_k_m" in result.err
    *_, last = result.out.splitlines()
    assert last == "Answers like the trained model: mostly, 19 of 20 agree. Exported in 1m 01s."
    for words in (
        "tickets-Q4_K_M.gguf, 105 MB",
        "llama-server -m /",
        "--to ollama --quant Q4_K_M",
        "/chat/completions",
    ):
        assert words in result.out, result.out
    written = f"written: {paths.exports_dir()}/{run.id}-gguf-q4_k_m, unproven"
    assert result.err.count(written) == 1


def test_a_file_that_nothing_here_can_read_is_reported_before(
    cli: CommandLine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.export.llama_cpp.has_library", lambda: False)
    told = cli("export", run.id, "--to", "gguf").err
    assert "The file is not verified: llama.cpp's library is not installed. Install it: pip install" in told


def test_json_has_the_fields_that_scripts_read(cli: CommandLine, run: Run, tmp_path: Path) -> None:
    result = cli("export", run.id, "--to", "gguf", "--out", str(tmp_path / "mine"), "--json")
    found = result.json
    assert (found["path"], found["kind"], found["quant"]) == (str(tmp_path / "mine"), "gguf", "Q8_0")
    assert (found["bytes"], found["verified"]) == (105_000_900, True)
    assert [file["name"] for file in found["files"]] == ["tickets-Q4_K_M.gguf", "README.md"]
    agreement = {name: found["agreement"][name] for name in ("rows", "mean_kl", "top1", "greedy_equal")}
    assert (found["proof"], sorted(found["commands"])) == ("proven", ["Ollama", "curl", "llama-server"])
    assert found["verdict"] == "Answers like the trained model: mostly, 19 of 20 agree."
    assert agreement == {"rows": 20, "mean_kl": 0.0123, "top1": 0.975, "greedy_equal": 19}


def test_what_cannot_be_exported_is_one_line(cli: CommandLine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, says in (
        (("tickets@7", "--to", "gguf"), "has no checkpoint of step 7"),
        (("nothing", "--to", "gguf"), "no run called nothing"),
        (("tickets", "--to", "adapter", "--quant", "F16"), "no type of weights to choose"),
        (("tickets", "--to", "merged", "--merge-from", "base", "--rows", "1001"), "compared on 0 to 1000 rows"),
    ):
        cli.refused(says, "export", *words)
    assert "--to" in cli("export", "tickets").err
    for kind in (["onnx"], ["gguf", "--quant", "Q3"]):
        assert "invalid choice" in cli("export", "tickets", "--to", *kind).err
    monkeypatch.setenv("SCRIPTED_EXPORT", "error")
    result = cli("export", "tickets", "--to", "gguf", "--json")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].endswith("Its mean divergence is 0.3 nats. Choose a type with more bits.")


def test_exports_are_in_the_list_of_runs(cli: CommandLine, run: Run) -> None:
    from tests.core.export.test_result import make_result, write_result

    write_result(make_result(paths.exports_dir() / "one", run=run.id))
    (listed,) = json.loads(cli("runs", "--json").out)
    assert listed["exports"] == [str(paths.exports_dir() / "one")]
