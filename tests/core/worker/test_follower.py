"""Processes of a run that another program has started, as their first one records them."""

from __future__ import annotations

import pytest

from core.config.schema import Config
from core.runs.record.events import NoticeEvent, RanksEvent
from core.runs.record.state import read_ranks
from core.runs.record.store import create_run
from core.worker.follower import tell_ranks
from core.worker.process.recorder import Recorder
from tests.e2e.workers import only


@pytest.mark.usefixtures("private_home")
def test_each_shared_device_is_reported_once() -> None:
    config = Config.model_validate({"data": {"train": "rows.jsonl"}})
    run = create_run(config, "tickets")
    here, tower = {"host": "head", "pid": 7}, {"host": "tower", "pid": 8}
    members = [
        {"rank": 0, **here, "device": "cpu", "beside": ["first"]},
        {"rank": 1, **here, "device": "cpu", "beside": ["first"]},
        {"rank": 2, **tower, "device": "cuda:0", "beside": []},
        {"rank": 3, **tower, "device": "cuda:1", "beside": ["first", "second", "third"]},
    ]
    recorder = Recorder(run)
    tell_ranks(run, config, recorder, members, is_supervised=False)
    assert [notice.message for notice in only(NoticeEvent, run)] == [
        "Run first is on the same device: both get slower, and their memory adds up.",
        "Process 3 on tower: Runs first, second and third are on the same device: all get slower, "
        "and their memory adds up.",
    ]
    (ranks,) = only(RanksEvent, run)
    assert [set(rank) for rank in ranks.ranks] == 4 * [{"rank", "host", "pid", "device"}]
    assert [rank.rank for rank in read_ranks(run.path)] == [0, 1, 2, 3]
