"""The hash chain: links that follow from one another, whatever happens to whoever writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.record.chain import (
    CHAIN_NAME,
    NOTHING,
    Chain,
    DamagedLinkError,
    Link,
    chain_head,
    parse_link,
    read_links,
    seal_events,
)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    return path


def links(directory: Path) -> list[Link]:
    found = list(read_links(directory / CHAIN_NAME))
    assert all(isinstance(link, Link) for link in found), found
    return [link for link in found if isinstance(link, Link)]


def test_each_link_seals_what_is_before_it(tmp_path: Path, events: Path) -> None:
    chain = Chain(tmp_path, events)
    chain.append("start", {"step": 0})
    with events.open("a") as file:
        file.write('{"c": 3}\n')
    chain.append("checkpoint", {"step": 4})
    first, second = links(tmp_path)
    assert (first.n, first.kind, first.prev) == (0, "start", NOTHING)
    assert (second.n, second.kind, second.prev) == (1, "checkpoint", first.link)
    assert (first.events.begin, first.events.end) == (0, 18)
    assert (second.events.begin, second.events.end) == (18, 27)
    assert second.events.sha256 == seal_events(events, 18)["sha256"]
    assert chain_head(tmp_path) == second.link
    assert (tmp_path / CHAIN_NAME).stat().st_mode & 0o777 == 0o600


def test_another_process_goes_on_and_cuts_off_a_torn_link(tmp_path: Path, events: Path) -> None:
    Chain(tmp_path, events).append("start", {})
    whole = (tmp_path / CHAIN_NAME).read_bytes()
    (tmp_path / CHAIN_NAME).write_bytes(whole + whole[:40])
    assert len(links(tmp_path)) == 1
    Chain(tmp_path, events).append("end", {})
    first, second = links(tmp_path)
    assert second.prev == first.link
    assert second.events.begin == second.events.end == 18


def test_a_line_that_is_half_written_is_sealed_when_it_is_whole(tmp_path: Path, events: Path) -> None:
    chain = Chain(tmp_path, events)
    with events.open("a") as file:
        file.write('{"c"')
    chain.append("start", {})
    with events.open("a") as file:
        file.write(": 3}\n")
    chain.append("end", {})
    assert [link.events.end for link in links(tmp_path)] == [18, 27]


def test_a_failed_link_is_written_with_the_next(tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(tmp_path, events)
    chain.append("start", {})
    before = (tmp_path / CHAIN_NAME).read_bytes()
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
        with pytest.raises(OSError, match="only a part"):
            chain.append("checkpoint", {})
    assert (tmp_path / CHAIN_NAME).read_bytes() == before
    chain.append("end", {})
    assert [link.kind for link in links(tmp_path)] == ["start", "checkpoint", "end"]


def damaged(directory: Path) -> str:
    *_, last = read_links(directory / CHAIN_NAME)
    assert isinstance(last, DamagedLinkError)
    return str(last)


def test_links_that_were_edited_removed_or_swapped_are_named(tmp_path: Path, events: Path) -> None:
    chain = Chain(tmp_path, events)
    for kind in ("start", "checkpoint", "checkpoint", "end"):
        chain.append(kind, {"step": 3})
    path = tmp_path / CHAIN_NAME
    one, two, three, four = path.read_bytes().splitlines(keepends=True)
    for lines, told in (
        ((one, two.replace(b'"step":3', b'"step":4'), three, four), "line 2: its digest is not that of its content"),
        ((one, three, four), "line 2: it is link 2: links were removed, added or moved"),
        ((one, three, two, four), "line 2: it is link 2"),
        ((two, three, four), "line 1: it is link 1"),
        ((one, b"nonsense\n", three), "line 2: it is no link"),
    ):
        path.write_bytes(b"".join(lines))
        assert told in damaged(tmp_path)


def test_a_link_of_another_chain_does_not_follow(tmp_path: Path, events: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for directory in (tmp_path, other):
        chain = Chain(directory, events)
        chain.append("start", {"of": str(directory)})
        chain.append("end", {})
    mine, theirs = ((directory / CHAIN_NAME).read_bytes().splitlines(keepends=True) for directory in (tmp_path, other))
    (tmp_path / CHAIN_NAME).write_bytes(mine[0] + theirs[1])
    assert "line 2: it does not follow from the line before" in damaged(tmp_path)


def test_a_line_too_long_for_a_link_is_damage(tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Chain(tmp_path, events).append("start", {})
    with (tmp_path / CHAIN_NAME).open("ab") as file:
        file.write(b"[" * 2000 + b"\n")
    monkeypatch.setattr("core.runs.record.chain.LINK_LIMIT", 1000)
    assert damaged(tmp_path) == "chain.jsonl, line 2: it is too long for a link"


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_line_is_a_link_or_refused(line: bytes | str) -> None:
    with pytest.raises(DamagedLinkError):
        parse_link(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass"))
