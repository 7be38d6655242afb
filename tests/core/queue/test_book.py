from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.queue.book import Queue
from core.queue.entry import FOLLOWS, STATES, QueueEntry
from tests.cases import cases
from tests.core.runs.event_strategies import JSON
from tests.examples import examples


def queue_of(*names: str) -> Queue:
    return Queue().with_added([QueueEntry(id=1, name=name) for name in names])


def order(queue: Queue) -> list[str]:
    return [entry.name for entry in queue.upcoming]


def test_entries_wait_in_the_order_in_which_they_were_added() -> None:
    queue = queue_of("a", "b").with_added([QueueEntry(id=1, name="c")])
    assert order(queue) == ["a", "b", "c"]
    assert [entry.id for entry in queue.entries] == [1, 2, 3]
    assert queue.next_waiting == queue.entry(1)
    for position, expected in ((1, "cab"), (2, "acb"), (3, "abc"), (99, "abc"), (-5, "cab")):
        assert order(queue.with_position(3, position)) == list(expected)
    held = queue.held(1)
    assert held.next_waiting == held.entry(2)
    assert held.released(1).next_waiting == queue.entry(1)


def test_an_ended_entry_is_put_back_at_the_end_for_a_new_run() -> None:
    queue = queue_of("a", "b")
    ended = queue.entry(1).moved("starting", run="r", begun=1.0, starts=1).moved("failed", reason="full", ended=2.0)
    again = queue.with_entry(ended).released(1)
    assert order(again) == ["b", "a"]
    assert again.entry(1) == queue.entry(1)
    with pytest.raises(UserError, match="Entry 1 is waiting already"):
        again.released(1)


def test_one_that_runs_is_neither_moved_nor_removed_and_the_message_says_how_to_stop_it() -> None:
    queue = queue_of("a", "b")
    queue = queue.with_entry(queue.entry(1).moved("starting", run="20260101-000000-a"))
    changes: list[Callable[[], Queue]] = [
        lambda: queue.removed(1),
        lambda: queue.with_position(1, 2),
        lambda: queue.held(1),
    ]
    for change in changes:
        with pytest.raises(UserError, match="Entry 1 is starting") as error:
            change()
        assert "stop 20260101-000000-a" in error.value.hint
    assert order(queue.with_position(2, 1)) == ["b"]
    assert queue.with_position(2, 1).active == queue.entry(1)


def test_one_whose_index_is_being_made_is_done_when_it_is_removed() -> None:
    queue = queue_of("a", "b")
    running = queue.entry(1).moved("starting", run="r").moved("running")
    indexing = replace(running, outcome="finished", ended=2.0, reason="all steps done")
    assert [entry.is_indexing for entry in (running, indexing, indexing.moved("done"))] == [False, True, False]
    queue = queue.with_entry(indexing)
    with pytest.raises(UserError, match="Entry 1 is running and cannot be held") as error:
        queue.held(1)
    assert "queue remove 1" in error.value.hint
    done = queue.removed(1).entry(1)
    assert (done.state, done.outcome, done.ended) == ("done", "finished", 2.0)
    assert done.reason == "all steps done; its index was given up; localtune-tui why r --index makes it"
    assert done.trouble == "its index was given up; localtune-tui why r --index makes it"
    assert indexing.moved("done").trouble == ""


def test_the_hint_to_clear_is_for_ended_entries_that_were_to_be_removed() -> None:
    queue = queue_of("a")
    queue = queue.with_entry(queue.entry(1).moved("starting", run="20260101-000000-a").moved("failed"))
    for change, hint in ((queue.removed, "queue clear"), (queue.held, "queue list")):
        with pytest.raises(UserError, match="Entry 1 is failed") as error:
            change(1)
        assert hint in error.value.hint


def test_a_sweep_that_was_taken_out_is_not_named_among_those_there_are() -> None:
    entries = [QueueEntry(id=1, name=name, sweep=name) for name in ("s1", "s2", "s3")]
    queue = Queue().with_added(entries).removed(1)
    with pytest.raises(UserError, match="no sweep s1") as error:
        queue.of_sweep("s1")
    assert error.value.hint == "There are s2, s3."
    with pytest.raises(UserError) as error:
        queue.removed(2).of_sweep("s1")
    assert error.value.hint == "There is s3."


def test_a_removed_entry_is_not_found_and_its_id_is_not_given_again() -> None:
    queue = queue_of("a").removed(1)
    with pytest.raises(UserError, match="no entry 1"):
        queue.entry(1)
    cleared = queue.cleared()
    assert cleared.entries == ()
    assert cleared.with_added([QueueEntry(id=1, name="b")]).entries[0].id == 2


def test_an_entry_takes_no_step_that_its_state_does_not_allow() -> None:
    for state in STATES:
        entry = QueueEntry(id=1, name="a", state=state)  # type: ignore[arg-type]
        for after in STATES - FOLLOWS[state]:
            with pytest.raises(ValueError, match="cannot become"):
                entry.moved(after)  # type: ignore[arg-type]
        assert entry.is_over is (state != "held" and FOLLOWS[state] <= {"waiting"})


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Zs", "Co", "Cn"]), max_size=20)
ENTRIES = st.builds(
    QueueEntry,
    id=st.just(1),
    name=TEXTS,
    state=st.sampled_from(sorted(STATES)),
    added=st.floats(0, 4e9),
    run=st.none() | st.integers(1, 10**9).map(lambda number: f"run-{number}"),
    starts=st.integers(0, 9),
    overrides=st.lists(TEXTS, max_size=3).map(tuple),
    sweep=st.none() | st.just("s1"),
    values=st.dictionaries(TEXTS, st.integers() | st.booleans() | TEXTS, max_size=3),
    begun=st.none() | st.floats(0, 4e9),
)


@settings(max_examples=examples(30))
@given(st.lists(ENTRIES, max_size=3, unique_by=lambda entry: entry.run or object()))
def test_what_is_written_is_read_again(entries: list[QueueEntry]) -> None:
    queue = Queue().with_added(entries)
    assert Queue.loads(queue.dumps()) == queue


@given(st.data())
def test_a_damaged_text_is_refused_or_makes_sense(data: st.DataObject) -> None:
    text = queue_of("a", "b").dumps()
    cut, size = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
    damaged = text[:cut] + data.draw(st.text(max_size=5)) + text[cut + size :]
    with contextlib.suppress(ValueError):
        entries = Queue.loads(damaged).entries
        assert len({entry.id for entry in entries}) == len(entries)


@cases(
    ("change", "said"),
    [
        ({"state": "flying"}, "state of entry 1"),
        ({"run": "../../etc"}, "run of entry 1"),
        ({"id": True}, "id of entry"),
        ({"added": None}, "added of entry 1"),
        ({"overrides": "a"}, "overrides of entry 1"),
        ({"begun": 1e300}, "begun of entry 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(change: dict[str, object], said: str) -> None:
    data = json.loads(queue_of("a").dumps())
    data["entries"][0].update(change)
    with pytest.raises(ValueError, match=said):
        Queue.loads(json.dumps(data))


@cases(
    ("before", "after", "said"),
    [
        ('"added": 0.0', f'"added": 1{"0" * 400}', "more than 64 bits"),
        ('"begun": null', '"begun": -1e400', "not finite"),
        ('"values": {}', '"values": {"x": [1, NaN]}', "not finite"),
        ('"values": {}', '"values": {"x": {"y": 18446744073709551616}}', "more than 64 bits"),
        ('"values": {}', '"values": {"x\\udc00": 1}', "cannot be written again"),
        ('"overrides": []', '"overrides": ["\\ud800"]', "cannot be written again"),
        ('"continued": null', '"continued": "\\udfff"', "cannot be written again"),
        ('"format": 1', '"format": 2', "another version"),
        ('"entries": [', '"entries": [{"id": 2, "name": "b", "state": "running", "run": "r"}, ', "one run"),
        ('"next_id": 2', '"next_id": 2147483649', "next_id is not a number"),
        ('"next_id": 2', '"next_id": true', "next_id is not a number"),
        ('"next_sweep": 1', '"next_sweep": 9223372036854775807', "next_sweep is not a number"),
    ],
)
def test_what_could_not_be_written_and_read_again_is_refused(before: str, after: str, said: str) -> None:
    text = queue_of("a").dumps().replace('"run": null', '"run": "r"')
    assert before in text
    with pytest.raises(ValueError, match=said):
        Queue.loads(text.replace(before, after))


def test_the_last_numbers_are_given_and_then_no_more() -> None:
    last = 2**31 - 1
    queue = Queue(next_id=last, next_sweep=last).with_added([QueueEntry(id=1, name="a")])
    assert queue.entries[0].id == last
    assert Queue.loads(queue.dumps()) == queue
    for more in ([QueueEntry(id=1, name="b")], [QueueEntry(id=1, name="b")] * 3):
        with pytest.raises(UserError, match="no number left"):
            queue.with_added(more)
    queue, sweep = queue.with_sweep()
    assert sweep == f"s{last}"
    assert Queue.loads(queue.dumps()) == queue
    with pytest.raises(UserError, match="no number left"):
        queue.with_sweep()


@settings(max_examples=examples(100))
@given(st.sampled_from(["added", "begun", "values", "overrides", "reason", "name", "sweep", "run", "starts"]), JSON)
def test_whatever_is_read_is_itself_when_it_is_written(field: str, value: object) -> None:
    data = json.loads(queue_of("a").dumps())
    data["entries"][0][field] = value
    with contextlib.suppress(ValueError):
        queue = Queue.loads(json.dumps(data))
        assert Queue.loads(queue.dumps().encode("utf-8").decode("utf-8")) == queue
