"""``chat``: its target, and its answers to prompts."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from core.chat.corrections import corrections_file, read_corrections
from core.chat.transcripts import list_transcripts
from core.commands.chat import find_target, find_target_at
from core.errors import UserError
from tests.tui.terminal import Terminal

from .conftest import CommandLine


def test_a_target_is_a_run_its_step_or_a_model(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cli.train("qwen-tickets")
    for name in (run.id, "tickets", "qwen", str(run.path), "latest"):
        assert find_target(name) == run
    (cli.home / "models" / "qwen").mkdir(parents=True)
    assert find_target("qwen") == "qwen", "a prepared model goes before a part of an id"
    assert find_target(run.id) == run
    model = tmp_path / "models" / "mine@3"
    model.mkdir(parents=True)
    monkeypatch.chdir(model.parent)
    assert find_target(str(model)) == model
    assert find_target("smollm2-135m-instruct") == "smollm2-135m-instruct"
    for name, target, step in (
        ("tickets@30", run, 30),
        ("latest", run, None),
        ("tickets@thirty", "tickets@thirty", None),
        ("mine@3", Path("mine@3"), None),
    ):
        assert find_target_at(name) == (target, step)
    with pytest.raises(UserError, match="no run nothing, so it has no step 3"):
        find_target_at("nothing@3")
    cli.refused("has no checkpoint of step 30", "chat", "tickets@30", "--prompt", "hello")
    cli.refused("adapter", "chat", run.id, "--prompt", "hello", "--json")
    cli.train("two-tickets")
    with pytest.raises(UserError, match="2 runs"):
        find_target("tickets")


def test_one_answer_with_sampling_of_the_command_line_is_kept_with_the_run(cli: CommandLine) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    cli.refused("top_k must be a whole number", "chat", run.id, "--prompt", "hello", "--top-k", "-1")
    flags = ["--top-p", "0.9", "--top-k", "40", "--min-p", "0.1", "--repetition-penalty", "1.1", "--seed", "3"]
    result = cli.ok("chat", run.id, "--prompt", "hello", *flags, "--stop", "a", "--stop", "\n", "--json")
    answer = result.json
    assert answer["prompt_tokens"] == 0, "a worker of an earlier version does not tell it"
    assert answer["answer"] == "1 user hello a \ufffd]52;c;x\ufffd word"
    assert answer["source"].startswith("step-")
    assert (answer["tokens_per_second"], answer["first_token_seconds"]) == (20.0, 0.25)
    (kept,) = list_transcripts(run)
    assert kept.dialogue().exchanges[0].question == "hello"
    (reply,) = kept.dialogue().exchanges[0].replies
    assert reply.speaker.startswith("step ")
    assert "first 0.25 s" in reply.stats
    kept.path.unlink()
    (run.path / "chats").rmdir()
    (run.path / "chats").write_text("a file in its place")
    unkept = cli.ok("chat", run.id, "--prompt", "hello")
    assert "warning: The conversation is not saved with the run: " in unkept.err


def test_a_missing_or_empty_prompt_is_refused(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.refused("--prompt", "chat", "latest", "--json", code=2)
    monkeypatch.setattr("sys.stdin", io.StringIO("  \n"))
    cli.refused("prompt is empty", "chat", "latest")


def test_base_system_and_a_piped_prompt(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    result = cli.ok("chat", run.id, "--base", "--system", "Be brief.")
    assert result.out.startswith("2 system hello a ")
    assert "\x1b" not in result.out
    assert result.err.startswith("base · 7 tokens")


def hear(terminal: Terminal, act: Callable[[], object], said: str, end: str = "> ") -> None:
    """Do something, and wait for the output that follows."""
    mark = len(terminal.output)
    act()
    terminal.wait_for(lambda: said in (text := terminal.output[mark:].decode(errors="replace")) and text.endswith(end))


def test_a_conversation(cli: CommandLine, tmp_path: Path) -> None:
    run = cli.start(steps=10_000, pace=0.02)
    terminal = cli.terminal("chat", run.id)
    hear(terminal, lambda: None, "No row has a second turn, so each question is asked alone")
    for line, said in [
        ("hi", "1 user hi"),
        ("again", "1 user again"),
        ("/alone", "with what was said before."),
        ("and?", "5 user and?"),
        ("/base", "The base model answers."),
        ("who", "base · 7 tokens"),
        ("/clear", "New conversation."),
        ("new", "1 user new"),
        ("/tuned", "The tuned model answers."),
        ("/again", "1 user new"),
        ("/keep", "Name a file once"),
        (f"/keep {tmp_path / 'good.jsonl'}", "Appended to"),
        ("/correct right", "--corrections' learns it."),
        ("/as nobody@3", "nobody"),
        ("/as 3", "has no checkpoint of step 3"),
        ("/help", "/quit leaves"),
    ]:
        hear(terminal, partial(terminal.press, f"{line}\n"), said)
    hear(terminal, partial(terminal.press, "slow\n"), "and on", end="")
    hear(terminal, partial(terminal.signal, signal.SIGINT), "(cut off)")
    # The answer that was cut short is no part of the conversation.
    hear(terminal, partial(terminal.press, "after\n"), "3 user after")
    terminal.press("/quit\n")
    assert terminal.wait_for_end() == 0
    terminal.close()
    assert b"\x1b]52" not in terminal.output
    (row,) = [json.loads(line) for line in (tmp_path / "good.jsonl").read_text().splitlines()]
    assert [each["role"] for each in row["messages"]] == ["user", "assistant"]
    (correction,) = read_corrections(corrections_file(run))
    assert (correction.answer, correction.messages[-1]["content"]) == ("right", "new")
    assert correction.rejected == row["messages"][-1]["content"]
    kept = {one.title: one.dialogue() for one in list_transcripts(run)}
    assert set(kept) == {"hi", "new"}
    assert kept["new"].variants(kept["new"].exchanges[0]) == (1, 2)
    assert b"Traceback" not in terminal.output
