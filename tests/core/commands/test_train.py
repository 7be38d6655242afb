"""``train`` and ``continue`` with a scripted training process."""

from __future__ import annotations

import io
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.chat.corrections import Correction, corrections_file, keep_correction, read_corrections
from core.commands.starting import starts_all_the_same
from core.config.facts import Unkept
from core.launch import launcher
from core.runs.record.store import Run, find_run, list_runs
from tests.cases import cases, tables

from .conftest import CommandLine, record_run, wait_for

TABLES = tables(__file__)


def test_train_follows_to_the_end_and_sums_up(cli: CommandLine) -> None:
    cli.script(steps=5)
    summary = cli.ok("train", str(cli.config()), "--json", "--name", "My Run").json
    run = find_run("latest")
    assert summary["run"] == run.id
    assert run.id.endswith("-my-run")
    assert (summary["state"], summary["step"], summary["total_steps"]) == ("finished", 5, 5)
    assert summary["loss"] == pytest.approx(0.2)
    assert summary["tokens_per_second"] == pytest.approx(200)
    assert summary["peak_rss_bytes"] > 1_000_000
    assert summary["adapter"] == str(run.path / "adapter")
    assert "reason" not in summary


def test_progress_is_plain_and_safe_where_there_is_no_terminal(cli: CommandLine) -> None:
    cli.script(steps=3)
    result = cli("train", str(cli.config()))
    assert "2 of 3 rows used" in result.err
    assert "warning: a �]52;c;x� word" in result.err
    assert "\x1b" not in result.err + result.out
    assert f"chat {find_run('latest').id}" in result.out


@cases(
    ("end", "state", "reason", "hint"),
    [("failed", "failed", "The disk is full.", "Make room."), ("vanish", "lost", "is gone", "no checkpoint")],
)
def test_a_run_that_fails_or_vanishes_gives_its_reason_and_code_4(
    cli: CommandLine, end: str, state: str, reason: str, hint: str
) -> None:
    cli.script(steps=2, end=end)
    result = cli("train", str(cli.config()), "--json")
    summary = result.json
    assert (result.code, summary["state"], summary["loss"], summary["adapter"]) == (4, state, "NaN", None)
    assert reason in summary["reason"]
    assert hint in summary["hint"]


def test_overrides_and_allowed_codes_go_into_the_run(cli: CommandLine) -> None:
    unknown = cli("train", str(cli.config()), "--allow", "anything")
    assert (unknown.code, "eval_leak" in unknown.err, list_runs()) == (2, True, [])
    allowed = ("--allow", "eval_leak", "--allow", "format_ambiguous", "--set", "data.allow=eval_leak")
    made = cli.train("first", *allowed, "--set", "method.rank=4", "--set", "train.seed=7").config()
    assert made.data.allow == ["eval_leak", "format_ambiguous"]
    assert (made.method.rank, made.train.seed) == (4, 7)
    made = cli.train("second", "--set", "data.allow=eval_leak, stop_untrained").config()
    assert made.data.allow == ["eval_leak", "stop_untrained"]


def test_detach_prints_the_id_and_returns(cli: CommandLine) -> None:
    cli.script(steps=1000, pace=0.05)
    result = cli.ok("train", str(cli.config()), "--detach")
    run = find_run(result.out.strip())
    assert f"watch {run.id}" in result.err
    wait_for(lambda: run.state().state == "training", "training")


@cases(("content", "said"), TABLES["bad_data_is_refused_before_anything_starts"])
def test_bad_data_is_refused_before_anything_starts(cli: CommandLine, content: str | None, said: str) -> None:
    config = cli.config()
    data = cli.home / "data.jsonl"
    if content is None:
        data.unlink()
    else:
        data.write_text(content)
    result = cli.refused("localtune-tui: ", "train", str(config))
    assert re.search(said, result.err), result.err
    assert list_runs() == []


def test_a_bad_configuration_and_an_unwritable_home_are_refused(cli: CommandLine, tmp_path: Path) -> None:
    assert "epochss" in cli.refused("line 3", "train", str(cli.config(epochss="3"))).err
    cli.refused("There is no configuration file", "train", str(cli.home / "none.toml"))
    config = cli.config()
    (tmp_path / "file").touch()
    cli.monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "file" / "home"))
    assert "LOCALTUNE_HOME" in cli("train", str(config)).err


def stopped(cli: CommandLine) -> Run:
    """A run that was stopped after two steps at least."""
    run = cli.start(steps=200, pace=0.05)
    wait_for(lambda: run.state().step >= 2, "two steps")
    cli.ok("stop", run.id)
    return run


def test_continue_goes_on_from_the_checkpoint(cli: CommandLine) -> None:
    run = stopped(cli)
    cli.script(steps=run.state().step + 3)
    result = cli.ok("continue", "latest", "--json")
    assert (result.json["run"], result.json["state"]) == (run.id, "finished")
    assert "stopped at step" not in result.err
    assert len(list_runs()) == 1
    cli.refused("finished", "continue", run.id)


def test_corrections_are_learned_in_a_new_run(cli: CommandLine) -> None:
    parent = cli.train()
    parent.adapter_path.mkdir()
    (parent.adapter_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 32}')
    (parent.adapter_path / "adapter_model.safetensors").touch()
    cli.refused("No correction waits", "continue", parent.id, "--corrections")
    keep_correction(corrections_file(parent), Correction(({"role": "user", "content": "a"},), "right", "wrong"))
    run = find_run(cli.ok("continue", parent.id, "--corrections", "--json").json["run"])
    values = run.values()
    assert (values["model.adapter"], values["train.max_steps"]) == (str(parent.adapter_path), 4)
    assert [one.answer for one in read_corrections(Path(values["data.corrections"]))] == ["right"]
    missing = f"data.corrections={cli.home / 'none.jsonl'}"
    cli.refused("There is no correction in", "train", str(cli.config()), "--set", missing)


def test_continue_further_trains_the_result_in_a_new_run(cli: CommandLine) -> None:
    parent = cli.train()
    cli.refused("has neither an adapter", "continue", parent.id, "--further")
    parent.adapter_path.mkdir()
    (parent.adapter_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 32}')
    (parent.adapter_path / "adapter_model.safetensors").touch()
    cli.refused("--set goes with --further", "continue", parent.id, "--set", "train.epochs=2")
    result = cli.ok("continue", parent.id, "--further", "--set", "train.epochs=2", "--json")
    run = find_run(result.json["run"])
    before, values = parent.values(), run.values()
    assert run != parent
    assert values["model.adapter"] == str(parent.adapter_path)
    assert values["train.learning_rate"] == before["train.learning_rate"] / 2
    assert (before["train.epochs"], values["train.epochs"]) == (1.0, 2.0)
    listed = {row["id"]: row["parent"] for row in cli.ok("runs", "--json").json}
    assert listed == {parent.id: None, run.id: parent.id}


def test_continue_follows_a_link_to_another_disk_once_it_was_confirmed(cli: CommandLine, tmp_path: Path) -> None:
    run = stopped(cli)
    target = tmp_path / "large disk" / "moved"
    target.parent.mkdir()
    run.checkpoints_path.rename(target)
    run.checkpoints_path.symlink_to(target)
    cli.script(steps=run.state().step + 3)
    refused = cli.refused("is a link to", "continue", run.id)
    assert f"continue {run.id} --checkpoints '{target}'" in refused.err
    assert cli("continue", run.id, "--checkpoints", str(tmp_path)).code == 1
    assert run.state().state == "stopped"
    assert cli("continue", run.id, "--checkpoints", str(target), "--json").json["state"] == "finished"


def test_ctrl_c_stops_after_a_checkpoint(cli: CommandLine) -> None:
    cli.script(steps=10_000, pace=0.02)
    process = cli.spawn("train", str(cli.config()), "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: bool(list_runs()) and list_runs()[0].state().step > 0, "the first step")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    run = list_runs()[0]
    assert run.state().state == "stopped"
    assert run.id in out.decode()
    assert b"Stopping after a checkpoint" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", ["train", "continue"])
def test_ctrl_c_before_the_first_look_stops_too(cli: CommandLine, command: str) -> None:
    words = ["train", str(cli.config())]
    if command == "continue":
        words = ["continue", stopped(cli).id]
    spawn = launcher._spawn

    def spawn_and_interrupt(*args: Any, **options: Any) -> int:
        pid = spawn(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return pid

    cli.monkeypatch.setattr(launcher, "_spawn", spawn_and_interrupt)
    cli.script(steps=10_000, pace=0.02)
    result = cli(*words, "--json")
    assert result.code == 3, result.err
    assert result.json["state"] == "stopped"
    assert "Stopping after a checkpoint" in result.err


def test_second_ctrl_c_leaves_the_run(cli: CommandLine) -> None:
    # A step far longer than the test: the stop is taken, but not yet carried out.
    cli.script(steps=10, pace=60)
    process = cli.spawn("train", str(cli.config()), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    wait_for(lambda: bool(list_runs()) and list_runs()[0].state().state == "training", "training")
    process.send_signal(signal.SIGINT)
    seen = b""
    while b"Ctrl-C again" not in seen:
        seen += process.stderr.read1()  # type: ignore[attr-defined]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    run = list_runs()[0]
    assert process.returncode == 130
    assert f"watch {run.id}".encode() in err
    assert not run.state().is_over


def test_the_live_line_is_taken_away_on_a_terminal(cli: CommandLine) -> None:
    cli.script(steps=40, pace=0.05)
    config = cli.config()
    with cli.terminal("train", str(config), "--json") as terminal:
        assert terminal.wait_for_end() == 0
    seen = terminal.output
    assert b"\r\x1b[Kstep " in seen
    assert b"ETA" in seen
    assert seen.endswith((b"\r\x1b[K", b"\n"))
    assert b"]52;" in seen
    assert b"\x1b]52" not in seen


def test_what_most_likely_was_not_meant_is_reported_and_trained(cli: CommandLine) -> None:
    cli.script(steps=1)
    path = cli.config()
    path.write_text(path.read_text() + "[method]\nrank = 512\n")
    result = cli.ok("train", str(path), "--set", "eval.baseline=true")
    assert f"warning: {path}, line 4: method.alpha is 32 at rank 512" in result.err
    assert "warning: --set eval.baseline: eval.baseline is on, but there are no held-out rows" in result.err
    assert "Set data.eval" in result.err


def test_what_the_model_cannot_do_is_refused_before_anything_starts(cli: CommandLine) -> None:
    model = cli.home / "gpt"
    model.mkdir()
    (model / "config.json").write_text(
        '{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 99, "n_positions": 128}'
    )
    path = cli.config()
    path.write_text(path.read_text() + '[model]\nbase = "gpt"\n')
    said = f"{path}, line 4: train.max_length is 2048, and the model has learned 128 positions"
    cli.refused(said, "train", str(path))
    assert list_runs() == []


def test_a_model_that_is_not_here_is_refused_before_anything_starts(cli: CommandLine) -> None:
    path = str(cli.config())
    for base, said in (
        ("org/none", "'localtune-tui fetch hf://org/none' downloads it."),
        ("smolxyz", "Did you mean smollm2-135m-instruct?"),
        ("./none.gguf", "there is no file or directory"),
    ):
        result = cli.refused(said, "train", path, "--set", f"model.base={base}")
        assert f"The model {base} is not on this machine" in result.err
        assert "localtune-tui fetch hf://" in result.err
    (cli.home / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    damaged = cli("train", path, "--set", f"model.base={cli.home / 'cut.gguf'}")
    assert (damaged.code, "is damaged or cut short" in damaged.err) == (1, True)
    assert list_runs() == []


def test_a_deadline_that_an_earlier_run_shows_to_be_too_early_needs_a_yes(cli: CommandLine) -> None:
    config = cli.config()
    earlier = record_run(config, seconds=36_000.0)
    cli.script(steps=4)
    wish = ("--set", "night.deadline=07:00", "--set", "train.max_steps=4")
    refused = cli("train", str(config), *wish)
    assert refused.code == 2
    assert f"07:00 cannot be met: at full speed, by the pace of {earlier.id}, it ends at " in refused.err
    assert list_runs() == [earlier]
    cli.ok("train", str(config), *wish, "--yes")


def test_the_question_about_a_wish_is_asked_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, estimated = (
        Unkept("night.deadline", "07:00 cannot be met.", "Set 08:45.", known) for known in (True, False)
    )
    terminal = io.StringIO("y\nn\n")
    monkeypatch.setattr("sys.stdin", terminal)
    assert starts_all_the_same([estimated], yes=False), "an estimate is a warning"
    assert not starts_all_the_same([measured], yes=False), "there is no terminal"
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert starts_all_the_same([measured], yes=False)
    assert not starts_all_the_same([measured], yes=False)
    assert starts_all_the_same([measured], yes=True)


def test_a_batch_file_for_slurm_is_the_same_by_the_former_command(cli: CommandLine) -> None:
    config, job = str(cli.config()), cli.home / "job.sbatch"
    flags = ("--nodes", "2", "--time", "12:00:00", "--set", "hardware.device=cpu")
    written = cli("train", config, "--slurm", str(job), "--processes", "4", *flags, "--json")
    assert written.json == {"file": str(job), "nodes": 2, "processes": 8, "cards": 0}
    text = job.read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n" in text
    assert " --set hardware.device=cpu --name " in text
    assert cli("slurm", config, "--output", "-", "--cards-per-node", "4", *flags).out == text
    again = cli("train", config, "--slurm", str(job))
    assert (again.code, job.read_text()) == (1, text)
    assert "exists already" in again.err
    assert list_runs() == []


def test_other_machines_are_refused_with_the_lines_that_start_them(cli: CommandLine) -> None:
    cli.refused("--nodes goes with --slurm", "train", str(cli.config()), "--nodes", "2")
    named = ("--set", "distributed.hosts=tower", "--set", "distributed.address=10.0.0.1")
    result = cli.refused("--slurm FILE --nodes 2", "train", str(cli.config()), *named)
    assert "torchrun --nnodes 2 --nproc-per-node 1 --node-rank 0 --master-addr 10.0.0.1" in result.err
    assert list_runs() == []
