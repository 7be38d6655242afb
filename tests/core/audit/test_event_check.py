"""Events against the chain that seals them: changes of many lines, and records that are hard to read."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.audit.event_check import changed_events
from core.audit.result import MOST
from core.runs.record.chain import CHAIN_NAME, Chain, Link, read_links
from core.runs.record.events import encode_event
from core.runs.record.store import Run
from core.small_files import open_regular
from tests.cases import cases

from .test_spans import step

Change = Callable[[list[bytes]], object]


def sealed(directory: Path, count: int) -> tuple[Run, list[Link]]:
    """A record of so many steps, and the one link that seals it."""
    run = Run(directory)
    run.events_path.write_text("".join(encode_event(step(number)) for number in range(1, count + 1)))
    Chain(directory, run.events_path).append("end", {})
    return run, [link for link in read_links(directory / CHAIN_NAME) if isinstance(link, Link)]


def told(run: Run, links: list[Link]) -> list[str]:
    return [difference.what for difference in changed_events(run, links)]


def changed(directory: Path, count: int, change: Change) -> list[str]:
    """Reported differences of a record of so many steps after a change."""
    run, links = sealed(directory, count)
    lines = run.events_path.read_bytes().splitlines(keepends=True)
    change(lines)
    run.events_path.write_bytes(b"".join(lines))
    return told(run, links)


def edit_all(lines: list[bytes]) -> None:
    lines[:] = [line.replace(b'"loss": 1.0', b'"loss": 0.5') for line in lines]


def test_a_record_is_read_once_for_what_is_reported_of_many_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Mock(wraps=open_regular)
    monkeypatch.setattr("core.audit.event_check.open_regular", opened)
    found = changed(tmp_path, 400, edit_all)
    assert len(found) == MOST
    assert found[0] == "events.jsonl: line 1 (a step event of step 1) was changed."
    assert found[-1] == "events.jsonl: line 20 (a step event of step 20) was changed."
    assert opened.call_count == 2  # for the digest of the link, and for the events


@cases(
    ("change", "sentence"),
    [
        (lambda lines: lines.__delitem__(slice(100, 5300)), "events.jsonl: 5200 lines were removed after line 100."),
        (lambda lines: lines.__delitem__(slice(0, 5200)), "events.jsonl: its first 5200 lines were removed."),
        (lambda lines: lines.clear(), "events.jsonl: its first 5500 lines were removed."),
        (
            lambda lines: lines.__setitem__(slice(100, 5300), [b"{}\n"]),
            "events.jsonl: from line 101 on, 5200 lines of the record were changed, removed or moved.",
        ),
        (
            lambda lines: lines.__setitem__(slice(100, 100), lines[:5200]),
            "events.jsonl: 5200 lines were added after line 100.",
        ),
        (
            lambda lines: lines.__setitem__(slice(0, 0), [b"{}\n"] * 5001),
            "events.jsonl: 5001 lines were added before its first.",
        ),
        (edit_all, "events.jsonl: from line 1 on, 5500 lines of the record were changed, removed or moved."),
    ],
    ids=["removed", "beginning removed", "all removed", "replaced", "added", "added before", "all changed"],
)
def test_a_change_of_thousands_of_lines_is_one_range(tmp_path: Path, change: Change, sentence: str) -> None:
    assert changed(tmp_path, 5500, change) == [sentence]


def test_a_removed_line_is_reported_by_its_number(tmp_path: Path) -> None:
    for number in (1, 22, 23, 111):
        found = changed(tmp_path, 120, lambda lines, number=number: lines.pop(number - 1))  # type: ignore[misc]
        assert found == [
            f"events.jsonl: a line was removed, number {number} of the record, before that of step {number + 1}."
        ]
        (tmp_path / CHAIN_NAME).unlink()


def test_lines_that_repeat_again_and_again_are_a_stretch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.events_path.write_bytes(b"a\nb\n" * 2000)
    Chain(tmp_path, run.events_path).append("end", {})
    run.events_path.write_bytes(b"a\na\nb\n" * 1500)
    links = [link for link in read_links(tmp_path / CHAIN_NAME) if isinstance(link, Link)]
    (sentence,) = told(run, links)
    assert sentence.startswith("events.jsonl: from line 2 on, ")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A limit that a record held as a whole would exceed."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("end", [b"", b"\n"], ids=["without an end", "with an end"])
def test_a_line_of_hundreds_of_megabytes_is_not_held(tmp_path: Path, end: bytes) -> None:
    run, links = sealed(tmp_path, 3)
    with run.events_path.open("r+b") as file:
        file.truncate(96 << 20)
        file.seek(0, os.SEEK_END)
        file.write(end)
    assert told(run, links) == []  # it is after the sealed lines
    with run.events_path.open("r+b") as file:
        file.write(b"#")
    assert told(run, links)[0] == "events.jsonl: line 1 was changed."


@pytest.mark.usefixtures("little_memory")
def test_a_record_of_line_breaks_alone_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, links = sealed(tmp_path, 3)
    monkeypatch.setattr("core.audit.event_check._MORE", 10_000)
    run.events_path.write_bytes(b"\n" * (1 << 20))
    assert told(run, links) == ["events.jsonl: from line 1 on, 3 lines of the record were changed, removed or moved."]


def test_a_named_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    run, links = sealed(tmp_path, 3)
    run.events_path.unlink()
    os.mkfifo(run.events_path)
    with pytest.raises(OSError, match="named pipe"):
        changed_events(run, links)


def test_links_that_seal_places_beyond_any_file_are_not_as_the_record_is(tmp_path: Path) -> None:
    run, links = sealed(tmp_path, 3)
    (link,) = links
    beyond = Link(1, "end", 0.0, type(link.events)(1 << 80, 1 << 81, "", ""), {}, "", "")
    assert told(run, [link, beyond]) == ["events.jsonl is not as it was sealed."]


@given(
    st.lists(st.sampled_from([b"", b"a", b"b", b'{"type": "step", "step": 1}', b"\xff\x00", b"[" * 99]), max_size=12),
    st.binary(max_size=60),
)
def test_any_other_bytes_are_reported(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], now: bytes) -> None:
    directory = tmp_path_factory.mktemp("any")
    run, before = Run(directory), b"".join(line + b"\n" for line in lines)
    run.events_path.write_bytes(before)
    Chain(directory, run.events_path).append("end", {})
    links = [link for link in read_links(directory / CHAIN_NAME) if isinstance(link, Link)]
    run.events_path.write_bytes(now)
    assert bool(told(run, links)) == (not now.startswith(before))
