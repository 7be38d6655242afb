"""Makes the run that later versions have to continue: ``python -m tests.contracts.make_run CODE DIRECTORY``.

``CODE`` is a checkout of the version that makes the run (``git worktree add CODE 4b94b32`` for the run that is kept
here); it is used by its commands, as a user does. ``DIRECTORY`` then holds

- ``home``: a home with a random model, a dataset and a run that was stopped after some of its steps. Model and dataset
  have names of a hub, which mean the same in every home; paths would depend on the machine, and are part of the
  configuration's hash;
- ``continued``: the same version's result of continuing the run: the steps, the evaluations, the last checkpoint, and
  the facts that decide whether another machine calculates the same bits.

A home that ``DIRECTORY`` has stays; only the result of continuing the run is made anew, by a version that adds up in
another order, which changes the last bits.

Both are made by this machine's processor. Host name and process are removed from ``state.json``; locks, logs and
hardware events are left out; everything else is as that version wrote it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.contracts.talking import Message, answer_to, take_steps
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_for

MODEL = "tiny-llama"
REPOSITORY, COMMIT = "contracts/tickets", "4b94b32" + "0" * 33
TOTAL_STEPS = 14
#: Steps before the run is stopped, at least; between two checkpoints, so that stopping makes one.
STEPS_BEFORE = 6
#: Options changed in the live run, before its first step.
OVERRIDES: Message = {"train.learning_rate": 4e-3}
#: Names model and dataset, and the number of steps.
CONFIG = Path(__file__).with_name("run.toml")
#: Beginnings of variables that would decide where things are, or with which instructions a processor adds up.
_NOT_PASSED = ("LOCALTUNE_", "XDG_", "PYTHON", "ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "TORCH_")
_WORDS = ("the", "ticket", "area", "urgency", "normal", "high", "low", "ref", "null")


def environment(home: Path) -> dict[str, str]:
    """The environment in which a run computes the same bits each time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED)}
    return {**kept, "LOCALTUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}


def arithmetic() -> dict[str, str]:
    """The facts that decide the rounding of sums: if all are equal, so are the bits."""
    import torch

    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "fma", "amx", "sse", "f16c"))]
    return {
        "machine": platform.machine(),
        "vendor": facts.get("vendor_id", ""),
        "family": facts.get("cpu family", ""),
        "model": facts.get("model", ""),
        "flags": " ".join(sorted(flags)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
    }


def write_dataset(home: Path) -> None:
    """Write a dataset as ``fetch`` leaves it."""
    directory = home / "datasets" / REPOSITORY.replace("/", "--")
    at_commit = directory / COMMIT
    at_commit.mkdir(parents=True)
    sizes: dict[str, int] = {}
    for name, rows in (("train.jsonl", 26), ("eval.jsonl", 4)):
        lines = [json.dumps({"messages": _conversation(name, number)}) + "\n" for number in range(rows)]
        (at_commit / name).write_text("".join(lines), encoding="utf-8")
        sizes[name] = (at_commit / name).stat().st_size
    record = {"source": "hub", "repository": REPOSITORY, "commit": COMMIT, "files": sizes}
    record |= {"subsets": [], "have": sorted(sizes)}
    (at_commit / "localtune.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (directory / "refs.json").write_text(json.dumps({"main": COMMIT}, indent=1) + "\n", encoding="utf-8")


def _conversation(name: str, number: int) -> list[dict[str, str]]:
    """Conversations of different lengths, no two of them alike."""
    words = [_WORDS[(number * 5 + place * (place + 1)) % len(_WORDS)] for place in range(3 + number * 7 % 11)]
    answer = json.dumps({"area": words[0], "ref": number if name == "train.jsonl" else -number - 1})
    return [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": answer}]


def begin(code: Path, home: Path) -> Path:
    """Have a version start the run, and stop it after some steps; its directory."""
    write_tiny_model(home / "models" / MODEL)
    write_dataset(home)
    with tempfile.TemporaryDirectory() as directory:
        config = shutil.copy(CONFIG, Path(directory) / "contracts.toml")
        identity = json.loads(_command(code, home, "train", str(config), "--detach", "--json"))["run"]
    run = home / "runs" / str(identity)
    # Asked before there is anything to do, so that it is carried out before the first step.
    answer_to(run, "pause")
    answer_to(run, "set", OVERRIDES)
    assert take_steps(run, STEPS_BEFORE) < TOTAL_STEPS
    answer_to(run, "stop")
    wait_for(lambda: json.loads((run / "state.json").read_text())["state"] == "stopped", 60, "the end")
    return run


def go_on(code: Path, run: Path) -> Message:
    """Have a version continue the run; its result."""
    before = len(read_events(run))
    _command(code, run.parent.parent, "continue", run.name, "--json")
    told = read_events(run)[before:]
    return {
        "steps": [
            {name: event[name] for name in ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens")}
            for event in told
            if event["type"] == "step"
        ],
        "evals": [{name: event[name] for name in ("step", "loss")} for event in told if event["type"] == "eval"],
        "ending": {name: told[-1][name] for name in ("type", "reason", "step", "best", "adapter")},
    }


def read_events(run: Path) -> list[Message]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _command(code: Path, home: Path, *words: str) -> str:
    """Carry out a command of a version; its standard output."""
    process = subprocess.run(
        [sys.executable, "-m", "tui", *words],
        cwd=code,
        env={**environment(home), "PYTHONPATH": str(code)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return process.stdout


def strip(run: Path) -> None:
    """Remove the traces of this machine that continuing does not need."""
    for name in ("worker.log", "worker.lock", "control.sock"):
        (run / name).unlink(missing_ok=True)
    path = run / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    nobody: Message = {"pid": None, "pid_started": None, "host": "", "memory_events": None, "memory_kills": None}
    path.write_text(json.dumps({**state, **nobody}, indent=1) + "\n", encoding="utf-8")
    path = run / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["type"] != "hardware"), encoding="utf-8")


def main(code: Path, destination: Path) -> None:
    """Make the result anew, and the home where there is none."""
    # PEFT writes the path of the base into each adapter, which the hashes of the manifest cover.
    home, kept = Path("/tmp/localtune-contracts/home"), destination / "home"
    for directory in (home.parent, destination / "continued"):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    if not kept.exists():
        strip(begin(code, home))
        shutil.copytree(home, kept, ignore=shutil.ignore_patterns("cache"))
    else:
        shutil.copytree(kept, home)
    (run,) = (home / "runs").iterdir()
    result = go_on(code, run)
    last = max((run / "checkpoints").iterdir())
    shutil.copytree(last, destination / "continued" / last.name)
    shutil.rmtree(home.parent)
    result["arithmetic"] = {**arithmetic()}
    (destination / "continued" / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
