"""Self-checks of a real worker, and the state of a worker that is gone or does not answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.launch import launcher
from core.runs.catalog.rows import RunCatalog
from core.runs.control.client import ControlClient
from core.runs.record import state as oom
from core.runs.record.events import ControlEvent, NoticeEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import list_checkpoints, newest_valid
from core.worker.data.batches import DataOrder
from core.worker.progress.health import NONFINITE_LIMIT
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

#: The character whose embedding is not a number in :func:`poisoned_model`.
POISON = "~"
#: A run that goes on until somebody ends it.
ENDLESS: dict[str, Any] = {
    "train": {"max_steps": 100_000},
    "eval": {"every_steps": None},
    "checkpoint": {"every_steps": 5},
}


def poison(workers: Workers, lines: set[int]) -> None:
    """Give the workers a model that makes NaN of one character, and put it into some of the training rows."""
    from transformers import AutoTokenizer

    model = workers.directory / "poisoned"
    shutil.copytree(workers.model, model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    (token,) = AutoTokenizer.from_pretrained(model).encode(POISON, add_special_tokens=False)
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    workers.model = model
    rows = []
    for number in range(1, 41):
        # Rows of one length are in one step, so that a step is poisoned as a whole or not at all.
        question = f"ticket {POISON * 60}" if number in lines else "ticket login"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {number % 7}"}]
        rows.append(json.dumps({"messages": turns}))
    workers.train_data.write_text("\n".join(rows))


def test_a_loss_that_is_no_number_costs_its_update_and_names_its_rows(workers: Workers) -> None:
    lines = {7, 19, 20, 33}
    poison(workers, lines)
    run = workers.finished("few", train={"max_steps": 20}, eval={"every_steps": 5, "exact_match": False})
    lost = [event.step for event in e2e.steps(run) if not math.isfinite(event.loss)]
    assert len(lost) == 2, "each epoch of ten steps has one that is poisoned"
    notices = [event for event in e2e.only(NoticeEvent, run) if event.code == "nonfinite"]
    assert len(notices) == 2
    assert all("train.jsonl lines 7, 19, 20 and 33" in notice.message for notice in notices)
    assert f"step {lost[0]} " in notices[0].message
    tensors = load_file(run.adapter_path / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_run_that_gives_only_nans_ends_at_its_last_good_checkpoint(workers: Workers) -> None:
    poison(workers, set(range(17, 41)))
    lengths = [1] * 16 + [2] * 24  # the order depends on: short rows, and long rows, which are poisoned
    clean_first = [True] * 3 + [False] * NONFINITE_LIMIT

    def first_steps(seed: int) -> list[bool]:
        order = DataOrder(lengths, 4, seed)
        return [lengths[order.window(step)[0]] == 1 for step in range(len(clean_first))]

    seed = next(seed for seed in itertools.count() if first_steps(seed) == clean_first)
    run = workers.start(
        "many", train={"seed": seed}, eval={"every_steps": None}, checkpoint={"every_steps": 1, "keep": 2}
    )
    end = e2e.failure(run)
    assert [math.isfinite(event.loss) for event in e2e.steps(run)] == clean_first
    # The weights that the last finite loss was computed with are the last that are known to be good.
    good = 2
    assert f"the last good checkpoint is that of step {good}." in end.reason
    assert "train.jsonl lines " in end.reason
    found, damaged = newest_valid(run.checkpoints_path)
    assert found is not None
    assert (found.step, damaged) == (good, [])
    assert end.adapter == str(found.adapter_path.relative_to(run.path))
    assert len(list_checkpoints(run.checkpoints_path)) <= 2


def test_a_paused_worker_whose_directory_was_removed_ends(workers: Workers) -> None:
    run = workers.start("removed", **ENDLESS)
    e2e.wait_until_step(run, 3)
    ControlClient(run).request("pause")
    pid, gone = e2e.pid_of(run), run.path.with_name("gone")
    run.path.rename(gone)
    shutil.rmtree(gone)
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    ended = wait_for(lambda: os.waitid(os.P_PID, pid, flags), e2e.PATIENCE, "the worker to end")
    assert ended is not None
    assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 3)
    assert not run.path.exists()


@pytest.mark.long
def test_a_worker_that_answers_nothing_is_killed_and_continued(workers: Workers, reference: Run) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="lt-"))
    try:
        leftover = runtime / "localtune-0123456789abcdef.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(leftover))
        run = workers.start("hung", variables={"XDG_RUNTIME_DIR": str(runtime), **e2e.held_at(6)})
        e2e.wait_until_listening(run)
        assert not leftover.exists()
    finally:
        shutil.rmtree(runtime)
    e2e.wait_until_step(run, 6)
    e2e.signal_worker(run, signal.SIGSTOP)
    command = [sys.executable, "-m", "tui", "stop", "--force", "--json", str(run.path) + os.sep]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=e2e.PATIENCE, check=False)
    assert killed.returncode == 0, killed.stderr
    assert f"process {e2e.pid_of(run)} of {run.id} is killed" in killed.stderr
    assert "is lost" in killed.stderr
    assert json.loads(killed.stdout)["state"] == "stopped"
    assert e2e.exit_code(run) == -signal.SIGKILL
    end = e2e.ending(run)
    assert (end.type, end.reason) == ("stopped", f"stopped by SIGKILL after step {end.step}")
    assert run.state().reason == end.reason
    assert e2e.only(ControlEvent, run)[-1].sender == "SIGKILL"
    workers.complete(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group with too little memory for torch."""
    for base, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / f"localtune-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / limit).exists():
                continue
            (group / limit).write_text(str(120 << 20))
            yield group
            return
        finally:
            # The kernel takes its time to let go of a process that it has killed.
            wait_for(partial(_is_removed, group), e2e.PATIENCE, "the group to be empty")
    pytest.skip("not run: a control group can be made by root only, and not everywhere")


def test_a_worker_that_the_kernel_killed_for_want_of_memory_is_named(
    workers: Workers, memory_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workers.directory / "config.json"
    config.write_text(workers.config().model_dump_json())
    program = (
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "from core.config.schema import Config\n"
        "from core.launch import launcher\n"
        "print(launcher.start_run(Config.model_validate_json(open(sys.argv[2]).read()), 'starved').path)\n"
    )
    with workers.environment():
        started = subprocess.run(
            [sys.executable, "-c", program, str(memory_group), str(config)],
            capture_output=True,
            text=True,
            timeout=e2e.PATIENCE,
            check=False,
        )
    assert started.returncode == 0, started.stderr
    run = Run(Path(started.stdout.strip()))
    state = wait_for(lambda: found if (found := run.state()).state == "lost" else None, e2e.PATIENCE, "the kill")
    assert state is not None
    assert state.reason.startswith("killed by the kernel, as its control group ran out of memory; "), e2e.log(run)
    assert "lower train.micro_batch_size" in RunCatalog().row(run).reason
    assert state.reason in launcher.failure_reason(run)

    # Without access to the kernel's messages, the counter of the control group shows it.
    monkeypatch.setattr(oom, "_KERNEL_MESSAGES", Path("/nowhere"))
    monkeypatch.setattr(oom, "_LOGS", ())
    recorded = RunState.read(run.state_path)
    assert recorded is not None
    assert recorded.memory_kills == 0
    oom._memory_death.cache_clear()
    assert run.state().reason == state.reason
    oom._memory_death.cache_clear()
    assert oom.memory_death(dataclasses.replace(recorded, memory_kills=1), run.events_path) is None
    e2e.wait_until_state(run, "lost")
