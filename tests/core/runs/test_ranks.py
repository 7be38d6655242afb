from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given

from core.runs.record import events
from core.runs.record.history import RunHistory
from core.runs.record.state import Rank, rank_words, ranks_path, read_ranks, sign_words, silent_words, write_ranks
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.runs.event_strategies import JSON

RANKS = (
    Rank(rank=0, host="head", pid=11, device="cuda:0", heard=100.0),
    Rank(rank=1, host="head", pid=12, device="cuda:1", heard=99.0, is_waiting=True),
    Rank(rank=2, host="tower", pid=7, device="cuda:0", heard=86.0),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert read_ranks(run.path) == ()
    write_ranks(run.path, RANKS)
    assert read_ranks(run.path) == RANKS


def test_words_for_processes_and_their_signs_of_life() -> None:
    assert rank_words(RANKS) == "3 processes on 2 machines: head (cuda:0, cuda:1), tower (cuda:0)"
    assert rank_words(RANKS[:2]) == "2 processes: head (cuda:0, cuda:1)"
    assert [sign_words(rank, 100.4) for rank in RANKS] == ["0s ago", "1s ago", "14s ago"]
    assert sign_words(Rank(rank=0), 100.0) == "–"
    assert silent_words(RANKS, 90.0) == ""
    assert silent_words(RANKS, 100.0) == "no sign of life for 14s: 2 on tower"
    assert silent_words([Rank(rank=0)], 100.0) == ""


@cases(
    "content",
    [b"", b"{", b"[]", b'{"ranks": 1}', b'{"ranks": [1, null, {"rank": -1}, {"rank": true}]}', b"[" * 100_000],
)
def test_a_file_of_anything_else_has_no_processes(tmp_path: Path, content: bytes) -> None:
    ranks_path(tmp_path).write_bytes(content)
    assert read_ranks(tmp_path) == ()


@given(JSON)
def test_foreign_values_are_left_out(value: object) -> None:
    found = Rank.from_dict({"rank": 3, **dict.fromkeys(("host", "pid", "device", "heard", "is_waiting"), value)})
    assert found is not None
    json.dumps(found.to_dict(), allow_nan=False)
    assert sign_words(found, 1.0)


def test_the_record_names_the_processes_of_the_newest_start() -> None:
    history = RunHistory()
    history.apply(events.PhaseEvent(t=1.0, name="importing"))
    history.apply(events.RanksEvent(t=2.0, ranks=[rank.to_dict() for rank in RANKS[:2]], strategy="replicate"))
    assert [rank.pid for rank in history.ranks] == [11, 12]
    assert history.log[-1].text == "2 processes: head (cuda:0, cuda:1); replicate"
    history.apply(events.PhaseEvent(t=3.0, name="training"))
    history.apply(events.PhaseEvent(t=4.0, name="importing"))
    assert history.ranks == ()
