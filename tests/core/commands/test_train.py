"""``train`` and ``continue`` with a scripted training process."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.commands.starting import starts_all_the_same
from core.launch import launcher
from core.runs.outlook.forecast import Unmet
from core.runs.record.store import find_run, list_runs
from tests.cases import cases

from .conftest import CommandLine, record_slow_run, wait_for


def test_train_follows_to_the_end_and_sums_up(cli: CommandLine) -> None:
    cli.script(steps=5)
    result = cli("train", str(cli.config()), "--json", "--name", "My Run")
    assert result.code == 0
    summary = result.json
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


def test_a_failed_run_gives_its_reason_and_code_4(cli: CommandLine) -> None:
    cli.script(steps=2, end="failed")
    result = cli("train", str(cli.config()), "--json")
    assert result.code == 4
    summary = result.json
    assert (summary["state"], summary["reason"], summary["hint"]) == ("failed", "The disk is full.", "Make room.")
    assert summary["loss"] == "NaN"
    assert summary["adapter"] is None


def test_what_is_allowed_goes_into_the_run(cli: CommandLine) -> None:
    cli.script(steps=1)
    config = cli.config()
    arguments = ("--allow", "eval_leak", "--allow", "format_ambiguous", "--set", "data.allow=eval_leak")
    assert cli("train", str(config), *arguments).code == 0
    assert find_run("latest").config().data.allow == ["eval_leak", "format_ambiguous"]
    assert cli("train", str(config), "--set", "data.allow=eval_leak, stop_untrained").code == 0
    assert find_run("latest").config().data.allow == ["eval_leak", "stop_untrained"]


def test_an_unknown_code_is_refused_with_the_known_ones(cli: CommandLine) -> None:
    result = cli("train", str(cli.config()), "--allow", "anything")
    assert result.code == 2
    assert "eval_leak" in result.err
    assert list_runs() == []


def test_a_run_that_vanishes_is_lost(cli: CommandLine) -> None:
    cli.script(steps=2, end="vanish")
    result = cli("train", str(cli.config()), "--json")
    assert (result.code, result.json["state"]) == (4, "lost")
    assert "is gone" in result.json["reason"]
    assert "no checkpoint" in result.json["hint"]


def test_detach_prints_the_id_and_returns(cli: CommandLine) -> None:
    cli.script(steps=1000, pace=0.05)
    result = cli("train", str(cli.config()), "--detach")
    assert result.code == 0
    run = find_run(result.out.strip())
    assert f"watch {run.id}" in result.err
    wait_for(lambda: run.state().state == "training", "training")


def test_overrides_reach_the_run(cli: CommandLine) -> None:
    cli.script(steps=1)
    assert cli("train", str(cli.config()), "--set", "method.rank=4", "--set", "train.seed=7").code == 0
    config = find_run("latest").config()
    assert (config.method.rank, config.train.seed) == (4, 7)


@cases(
    ("content", "said"),
    [
        (None, "is no file|There is no|does not exist|no such"),
        ("", "empty"),
        ('{"promt": "a", "complettion": "b"}\n', "columns are promt"),
        ("not json\n", "."),
    ],
)
def test_bad_data_is_refused_before_anything_starts(cli: CommandLine, content: str | None, said: str) -> None:
    config = cli.config()
    data = cli.home / "data.jsonl"
    if content is None:
        data.unlink()
    else:
        data.write_text(content)
    result = cli("train", str(config))
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("localtune-tui: ")
    assert result.err.count("\n") == 1
    assert re.search(said, result.err), result.err
    assert list_runs() == []


def test_a_bad_configuration_names_line_and_key(cli: CommandLine) -> None:
    result = cli("train", str(cli.config(epochss="3")))
    assert result.code == 1
    assert "line 3" in result.err
    assert "epochss" in result.err


def test_a_missing_configuration(cli: CommandLine) -> None:
    result = cli("train", str(cli.home / "none.toml"))
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "There is no configuration file" in result.err


def test_unwritable_home(cli: CommandLine, tmp_path: Path) -> None:
    config = cli.config()
    file = tmp_path / "file"
    file.write_text("")
    cli.monkeypatch.setenv("LOCALTUNE_HOME", str(file / "home"))
    result = cli("train", str(config))
    assert result.code == 1
    assert "LOCALTUNE_HOME" in result.err


def test_continue_goes_on_from_the_checkpoint(cli: CommandLine) -> None:
    run = cli.start(steps=200, pace=0.05)
    wait_for(lambda: run.state().step >= 2, "two steps")
    assert cli("stop", run.id).code == 0
    cli.script(steps=run.state().step + 3)
    result = cli("continue", "latest", "--json")
    assert result.code == 0
    assert (result.json["run"], result.json["state"]) == (run.id, "finished")
    assert "stopped at step" not in result.err
    assert len(list_runs()) == 1
    again = cli("continue", run.id)
    assert again.code == 1
    assert "finished" in again.err


def test_continue_follows_a_link_to_another_disk_once_it_was_confirmed(cli: CommandLine, tmp_path: Path) -> None:
    run = cli.start(steps=200, pace=0.05)
    wait_for(lambda: run.state().step >= 2, "two steps")
    assert cli("stop", run.id).code == 0
    target = tmp_path / "large disk" / "moved"
    target.parent.mkdir()
    run.checkpoints_path.rename(target)
    run.checkpoints_path.symlink_to(target)
    cli.script(steps=run.state().step + 3)
    refused = cli("continue", run.id)
    assert refused.code == 1
    assert "is a link to" in refused.err
    assert f"continue {run.id} --checkpoints '{target}'" in refused.err
    assert cli("continue", run.id, "--checkpoints", str(tmp_path)).code == 1
    assert run.state().state == "stopped"
    assert cli("continue", run.id, "--checkpoints", str(target), "--json").json["state"] == "finished"


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


def test_ctrl_c_stops_after_a_checkpoint(cli: CommandLine) -> None:
    cli.script(steps=10_000, pace=0.02)
    process = cli.spawn("train", str(cli.config()), "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: bool(list_runs()) and list_runs()[0].state().step > 0, "the first step")
    _interrupt(process)
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
        run = cli.start(steps=200, pace=0.05)
        wait_for(lambda: run.state().step >= 2, "two steps")
        assert cli("stop", run.id).code == 0
        words = ["continue", run.id]
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
    _interrupt(process)
    seen = b""
    while b"Ctrl-C again" not in seen:
        seen += process.stderr.read1()  # type: ignore[attr-defined]
    _interrupt(process)
    _, err = process.communicate(timeout=30)
    run = list_runs()[0]
    assert process.returncode == 130
    assert f"watch {run.id}".encode() in err
    assert not run.state().is_over


def test_the_live_line_is_taken_away_on_a_terminal(cli: CommandLine) -> None:
    cli.script(steps=40, pace=0.05)
    config = cli.config()
    controller, terminal = pty.openpty()
    process = cli.spawn("train", str(config), "--json", stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    seen = b""
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:  # the terminal is closed with its last user
            break
        seen += piece
    os.close(controller)
    assert process.wait(timeout=30) == 0
    assert b"\r\x1b[Kstep " in seen
    assert b"ETA" in seen
    assert seen.endswith((b"\r\x1b[K", b"\n"))
    assert b"]52;" in seen
    assert b"\x1b]52" not in seen


def test_what_most_likely_was_not_meant_is_told_and_trained(cli: CommandLine) -> None:
    cli.script(steps=1)
    path = cli.config()
    path.write_text(path.read_text() + "[method]\nrank = 512\n")
    result = cli("train", str(path), "--set", "eval.baseline=true")
    assert result.code == 0
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
    result = cli("train", str(path))
    assert (result.code, result.out) == (1, "")
    assert f"{path}, line 4: train.max_length is 2048, and the model has learned 128 positions" in result.err
    assert result.err.count("\n") == 1
    assert list_runs() == []


@cases(
    ("base", "said"),
    [
        ("org/none", "'localtune-tui fetch hf://org/none' downloads it."),
        ("smolxyz", "Did you mean smollm2-135m-instruct?"),
        ("./none.gguf", "there is no file or directory"),
    ],
)
def test_a_model_that_is_not_here_is_refused_before_anything_starts(cli: CommandLine, base: str, said: str) -> None:
    path = cli.config()
    result = cli("train", str(path), "--set", f"model.base={base}")
    assert (result.code, result.out) == (1, "")
    assert f"The model {base} is not on this machine" in result.err
    assert said in result.err
    assert "localtune-tui fetch hf://" in result.err
    assert result.err.count("\n") == 1
    assert list_runs() == []


def test_a_gguf_file_that_is_cut_is_refused_before_anything_starts(cli: CommandLine) -> None:
    (cli.home / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    result = cli("train", str(cli.config()), "--set", f"model.base={cli.home / 'cut.gguf'}")
    assert result.code == 1
    assert "is damaged or cut short" in result.err
    assert list_runs() == []


def test_a_deadline_that_an_earlier_run_shows_to_be_too_early_needs_a_yes(cli: CommandLine) -> None:
    config = cli.config()
    earlier = record_slow_run(config)
    cli.script(steps=4)
    wish = ("--set", "night.deadline=07:00", "--set", "train.max_steps=4")
    refused = cli("train", str(config), *wish)
    assert refused.code == 2
    assert f"07:00 cannot be met: at full speed, by the pace of {earlier.id}, it ends at " in refused.err
    assert list_runs() == [earlier]
    assert cli("train", str(config), *wish, "--yes").code == 0


def test_the_question_about_a_wish_is_asked_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, estimated = (
        Unmet("night.deadline", "07:00 cannot be met.", "Set 08:45.", known) for known in (True, False)
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


def test_options_of_a_batch_file_need_one(cli: CommandLine) -> None:
    result = cli("train", str(cli.config()), "--nodes", "2")
    assert result.code == 1
    assert "--nodes goes with --slurm" in result.err


def test_other_machines_are_refused_with_the_lines_that_start_them(cli: CommandLine) -> None:
    named = ("--set", "distributed.hosts=tower", "--set", "distributed.address=10.0.0.1")
    result = cli("train", str(cli.config()), *named)
    assert result.code == 1
    assert "--slurm FILE --nodes 2" in result.err
    assert "torchrun --nnodes 2 --nproc-per-node 1 --node-rank 0 --master-addr 10.0.0.1" in result.err
    assert list_runs() == []
