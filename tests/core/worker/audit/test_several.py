"""Audits of runs with several processes: replayed by as many, with changes named."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from core.audit.job import audit_job
from core.audit.result import Audit
from core.audit.spans import Span, Team
from core.config.schema import Config
from core.runs.record.events import FinishedEvent, RanksEvent
from core.runs.record.store import Run, create_run
from core.worker import train as recipe
from core.worker.audit.replay import Replay
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.rendezvous import tcp_meeting
from core.worker.follower import follow
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from tests.core.worker.distributed.pairs import run_pair
from tests.core.worker.distributed.trainings import merged, write_rows

pytestmark = pytest.mark.slow

STEPS = 4


def train(directory: Path, model: Path, hosts: list[str], place: str = "", **sections: dict[str, Any]) -> Run:
    """A run of processes forked from this one, with these machines as their hosts.

    Args:
        directory: Where the rows go.
        model: The base.
        hosts: The machine of each.
        place: Where they meet; empty for over a file.
        **sections: Options.
    """
    values: dict[str, Any] = {
        "model": {"base": str(model)},
        "data": {"train": str(write_rows(directory / "rows.jsonl")), "eval_share": 0.1},
        "method": {"dropout": 0.1},
        "train": {"max_steps": STEPS, "batch_size": 5, "learning_rate": 5e-3},
        "eval": {"every_steps": 3, "exact_match": False, "samples": 1, "probe": False},
        "checkpoint": {"every_steps": 2, "keep": 9},
        "hardware": {"device": "cpu"},
        "chat": {"max_new_tokens": 3},
    }
    config = merged(values, sections)
    run = create_run(config, "several")

    def work(ranks: Ranks) -> str:
        recorder = Recorder(run, keeps=ranks.is_first)
        if not ranks.is_first:
            follow(config, recorder, ranks, resume=False)
            return "followed"
        recorder.phase("importing")
        members = [{"rank": rank, "host": host, "device": "cpu"} for rank, host in enumerate(hosts)]
        recorder.event(RanksEvent(ranks=members, strategy=config.distributed.strategy.replace("auto", "")))
        outcome = recipe.train(config, recorder, Controls(), resume=False, ranks=ranks)
        recorder.close("finished", "", FinishedEvent(reason="", step=outcome.step, adapter=outcome.adapter))
        return outcome.reason

    ends = run_pair(directory, work, count=len(hosts), place=place)
    assert ends == ["all steps done", *["followed"] * (len(hosts) - 1)], run.log_path
    return run


@pytest.fixture(autouse=True)
def _one_thread(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del private_home  # its variables come before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def flip(run: Run, file: str) -> str:
    """Flip the last bit of a file of the last checkpoint; its name as differences have it."""
    name = f"checkpoints/step-{STEPS:08}/{file}"
    raw = bytearray((run.path / name).read_bytes())
    raw[-1] ^= 1
    (run.path / name).write_bytes(raw)
    return name


def outcomes(found: Audit) -> list[tuple[int, int, str]]:
    return [(span.begin, span.end, span.outcome) for span in found.spans]


@pytest.mark.long
def test_a_run_on_several_machines_is_equal_on_one_and_a_difference_may_be_of_the_other(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Of three processes that met over a network, on two machines by their host names, with dropout."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = tcp_meeting("127.0.0.1", free.getsockname()[1])
    run = train(tmp_path, tiny_model_dir, ["tower", "tower", "attic"], place, distributed={"processes": 3})
    found = audit_job(run, spans=1, seed=1, whole=True).run()
    assert found.verdict == "verified", found
    assert (outcomes(found), found.notes, found.complete) == ([(0, STEPS, "equal")], (), True)
    name = flip(run, "adapter/adapter_model.safetensors")
    found = audit_job(run, spans=0, seed=1).run()
    (span,) = found.spans
    assert (span.outcome, found.verdict) == ("inexact", "differs")  # by the chain
    assert "computed on 2 machines, of which only the first one is recorded" in span.reason
    assert span.differences[0].file == name


@pytest.mark.long
def test_weights_shared_out_come_out_equal_and_a_flipped_bit_is_named(tmp_path: Path, tiny_model_dir: Path) -> None:
    method = {"name": "full", "dropout": 0.0}
    distributed = {"processes": 2, "strategy": "fsdp2"}
    run = train(tmp_path, tiny_model_dir, ["tower"] * 2, method=method, distributed=distributed)
    name = flip(run, "weights/trained.safetensors")
    found = audit_job(run, spans=9, seed=1).run()
    assert found.verdict == "differs", found
    assert [outcome for *_, outcome in outcomes(found)] == ["equal"] * (len(found.spans) - 1) + ["differs"]
    (difference,) = found.spans[-1].differences
    assert (difference.file, difference.step) == (name, STEPS)
    assert difference.recorded != difference.found


def test_a_machine_without_room_for_the_models_of_several_says_so(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 100 kB are free.
    monkeypatch.setattr("core.worker.setup.strategy.memory", lambda: (10**9, 10**9 + 10**5))
    rows = write_rows(tmp_path / "rows.jsonl")
    config = Config.model_validate({"model": {"base": str(tiny_model_dir)}, "data": {"train": str(rows)}})
    run = create_run(config, "large")
    work = tmp_path / "work"
    work.mkdir()
    span = Span(0, 1, (), team=Team(2, "replicate", machines=2))

    def execute(ranks: Ranks) -> str:
        replay = Replay(run, config, span, work, {}, {}, lambda *_: None, ranks)
        if ranks.is_first:
            return replay.execute().reason
        replay.follow()
        return "followed"

    first, other = run_pair(tmp_path, execute)
    assert first.startswith(
        "The run was computed by 2 processes on 2 machines, and this one has no room for as many models."
    )
    assert first.removeprefix("UserError: ") in other
