"""A run that an earlier version has begun goes on with this one, to the same bits (``make_run.py`` made it)."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.launch import launcher
from tests.contracts.collect import assert_contract, keys_of
from tests.contracts.make_run import OVERRIDES, arithmetic, environment, read_events
from tests.contracts.talking import PATIENCE, Message, answer_to, ask, take_steps
from tui.__main__ import main

ROOT = Path(__file__).parents[2]
MADE = Path(__file__).with_name("run_at_4b94b32")
RESULT: dict[str, Any] = json.loads((MADE / "continued" / "result.json").read_text(encoding="utf-8"))
WATCHED_WORKER = Path(__file__).with_name("watched_worker.py")
#: Tolerances on another processor: relative for losses and norms, absolute for weights. A hundredth of them was
#: measured without AVX-512, and without any AVX.
RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: Figures of an event that hang on the way in which a processor adds up.
MEASURED = ("loss", "grad_norm")
#: A conversation with the worker before it goes on: training must not depend on it.
QUESTION: Message = {"messages": [{"role": "user", "content": "high ticket"}], "max_new_tokens": 4}


@dataclass
class Continued:
    """The run, continued by this version to its end."""

    run: Path
    loaded: dict[str, Any]
    """The state before the first step, as ``watched_worker.py`` writes it."""
    code: int = -1
    summary: Message = field(default_factory=dict)
    events: list[Message] = field(default_factory=list)
    """The events since."""
    answers: list[list[Message]] = field(default_factory=list)


def copy_home(directory: Path) -> Path:
    """A copy of the home for a test; the directory of the run in it."""
    shutil.copytree(MADE / "home", directory / "home")
    (run,) = (directory / "home" / "runs").iterdir()
    return run


def computes_alike() -> bool:
    """True if this machine calculates the bits of the machine that made the run."""
    return bool(RESULT["arithmetic"] == arithmetic())


def assert_figures(found: list[Message], expected: list[Message]) -> None:
    """Events say the same, and figures do to the last bit where the machines calculate alike."""
    assert len(found) == len(expected)
    for event, wanted in zip(found, expected, strict=True):
        for name, value in wanted.items():
            is_close = name in MEASURED and not computes_alike()
            assert event[name] == (pytest.approx(value, rel=RELATIVE) if is_close else value), (name, wanted["step"])


def assert_tensors(found: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> None:
    relative, absolute = (0.0, 0.0) if exact else (RELATIVE, ABSOLUTE)
    torch.testing.assert_close(found, expected, rtol=relative, atol=absolute)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def flatten(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a checkpoint file's content, by path."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flatten(value, f"{name}/{key}")
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from flatten(value, f"{name}/{number}")
    else:
        yield name, state


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """The run, continued by the command, while somebody talks with it before its first step."""
    directory = tmp_path_factory.mktemp("continued")
    run, state = copy_home(directory), directory / "state.pt"
    before = len(read_events(run))
    found = Continued(run, {})

    def talk() -> None:
        asked: list[tuple[str, Message]] = [("pause", {}), ("ping", {}), ("checkpoint", {}), ("set", OVERRIDES)]
        found.answers = ask(run, *asked, ("generate", QUESTION), ("resume", {}))

    def command(_run: object, *, resume: bool = False) -> list[str]:
        assert resume
        return [sys.executable, str(WATCHED_WORKER), str(state), str(run), "--resume"]

    talking = threading.Thread(target=talk, daemon=True)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        for name, value in environment(directory / "home").items():
            patch.setenv(name, value)
        patch.setattr(launcher, "worker_command", command)
        talking.start()
        found.code = main(["continue", run.name, "--json"])
    talking.join(PATIENCE)
    log = run / "worker.log"
    assert found.code == 0, log.read_text(encoding="utf-8") if log.exists() else "no worker was started"
    found.summary = json.loads(printed.getvalue())
    found.events = read_events(run)[before:]
    found.loaded = load(state)
    return found


def test_it_goes_on_where_it_was_and_ends_as_it_would_have(continued: Continued) -> None:
    told = continued.events
    assert [event["code"] for event in told if event["type"] == "notice" and event["level"] != "info"] == []
    assert "resumed" in [event.get("code") for event in told]
    assert_figures([event for event in told if event["type"] == "step"], RESULT["steps"])
    assert_figures([event for event in told if event["type"] == "eval"], RESULT["evals"])
    ending = told[-1]
    assert {name: ending[name] for name in RESULT["ending"]} == RESULT["ending"]


def test_what_is_loaded_is_what_the_checkpoint_holds(continued: Continued) -> None:
    at = max((MADE / "home" / "runs").glob("*/checkpoints/step-*"))
    held = load_file(at / "adapter" / "adapter_model.safetensors")
    loaded = continued.loaded["parameters"]
    # The optimizer has no names for them.
    assert sorted(tensor.numpy().tobytes() for tensor in loaded) == sorted(
        tensor.numpy().tobytes() for tensor in held.values()
    )
    states = load(at / "optimizer.pt")["state"]
    assert len(states) == len(continued.loaded["states"]) == len(held)
    for number, state in enumerate(continued.loaded["states"]):
        assert set(state) == set(states[number])
        for name, value in states[number].items():
            assert_tensors(state[name], value, exact=True)


def test_its_last_checkpoint_is_the_one_that_it_would_have_had(continued: Continued) -> None:
    expected = max((MADE / "continued").glob("step-*"))
    found = continued.run / "checkpoints" / expected.name
    manifest, wanted = (json.loads((path / "manifest.json").read_text(encoding="utf-8")) for path in (found, expected))
    # Hashes of files depend on paths and on the processor; the base has had another hash since.
    left_out = {"files", "manifest_sha256", "base_sha256", *(() if computes_alike() else ("selection",))}
    assert {key: manifest[key] for key in wanted.keys() - left_out} == {
        key: wanted[key] for key in wanted.keys() - left_out
    }
    assert set(manifest["files"]) == set(wanted["files"])
    for name, exact in (("rng.pt", True), ("optimizer.pt", computes_alike())):
        leaves, others = dict(flatten(load(found / name))), dict(flatten(load(expected / name)))
        assert leaves.keys() == others.keys()
        for leaf, value in others.items():
            if isinstance(value, torch.Tensor):
                assert_tensors(leaves[leaf], value, exact=exact)
            else:
                assert leaves[leaf] == value, leaf
    weights = Path("adapter") / "adapter_model.safetensors"
    tensors, wanted_tensors = load_file(found / weights), load_file(expected / weights)
    assert tensors.keys() == wanted_tensors.keys()
    for name, tensor in wanted_tensors.items():
        assert_tensors(tensors[name], tensor, exact=computes_alike())
    assert (continued.run / weights).read_bytes() == (found / weights).read_bytes()


def test_what_is_in_its_directory_is_called_as_ever(continued: Continued) -> None:
    checkpoint = max((continued.run / "checkpoints").iterdir())
    names = {
        path.relative_to(continued.run).as_posix().replace(checkpoint.name, "step-N")
        for path in continued.run.rglob("*")
        if "step-" not in path.as_posix() or checkpoint.name in path.as_posix()
    }
    assert_contract("files of a finished run", dict.fromkeys(sorted(names), ""))
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    files = dict.fromkeys(next(iter(manifest["files"].values())), "")
    assert_contract("keys of a manifest", keys_of(manifest | {"files": {"NAME": files}, "overrides": {}, "config": {}}))
    state = json.loads((continued.run / "state.json").read_text(encoding="utf-8"))
    assert_contract("keys of state.json", keys_of(state))
    for path in [checkpoint, *checkpoint.rglob("*"), continued.run / "adapter", *(continued.run / "adapter").iterdir()]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_answers_of_the_worker_are_as_ever(continued: Continued) -> None:
    names = ("pause", "ping", "checkpoint", "set", "generate", "resume")
    found = {name: keys_of(messages[-1]) for name, messages in zip(names, continued.answers, strict=True)}
    found["a piece of an answer"] = keys_of(continued.answers[names.index("generate")][0])
    assert_contract("answers on the control socket", found)
    assert_contract("fields of a run's summary", keys_of(continued.summary))


@pytest.mark.long
def test_a_run_that_was_only_started_begins(tmp_path: Path) -> None:
    run = copy_home(tmp_path)
    made = [event for event in read_events(run) if event["type"] == "step"]
    state: Message = json.loads((run / "state.json").read_text(encoding="utf-8"))
    for path in [run / "checkpoints", run / "events.jsonl"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    queued: Message = {"state": "queued", "reason": "", "step": 0, "total_steps": 0}
    (run / "state.json").write_text(json.dumps(state | queued), encoding="utf-8")

    worker = subprocess.Popen(
        [sys.executable, "-m", "core.worker", str(run)],
        cwd=run,
        env=environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        _, (refused,), _ = ask(run, ("pause", {}), ("checkpoint", {}), ("set", OVERRIDES))
        assert_contract("a refusal on the control socket", keys_of(refused))
        done = take_steps(run, 3)
        assert answer_to(run, "stop")["state"] in ("stopping", "over")
        assert worker.wait(PATIENCE) == 3
    finally:
        worker.kill()
    steps = [event for event in read_events(run) if event["type"] == "step"]
    figures = ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens")
    assert_figures(steps, [{name: event[name] for name in figures} for event in made[:done]])
