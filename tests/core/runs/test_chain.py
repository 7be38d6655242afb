"""The hash chain: links that follow from one another, whatever happens to whoever writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.record import chain as chain_module


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    return path


def links(directory: Path) -> list[chain_module.Link]:
    found = list(chain_module.read_links(directory / chain_module.CHAIN_NAME))
    assert all(isinstance(link, chain_module.Link) for link in found), found
    return [link for link in found if isinstance(link, chain_module.Link)]


def test_each_link_seals_what_is_before_it(tmp_path: Path, events: Path) -> None:
    chain = chain_module.Chain(tmp_path, events)
    chain.append("start", {"step": 0})
    with events.open("a") as file:
        file.write('{"c": 3}\n')
    chain.append("checkpoint", {"step": 4})
    first, second = links(tmp_path)
    assert (first.n, first.kind, first.prev) == (0, "start", chain_module.NOTHING)
    assert (second.n, second.kind, second.prev) == (1, "checkpoint", first.link)
    assert (first.events.begin, first.events.end) == (0, 18)
    assert (second.events.begin, second.events.end) == (18, 27)
    assert second.events.sha256 == chain_module.seal_events(events, 18)["sha256"]
    assert chain_module.chain_head(tmp_path) == second.link
    assert (tmp_path / chain_module.CHAIN_NAME).stat().st_mode & 0o777 == 0o600


def test_another_process_goes_on_and_cuts_off_a_torn_link(tmp_path: Path, events: Path) -> None:
    with events.open("a") as file:
        file.write('{"c"')  # a line that is sealed when it is whole
    chain_module.Chain(tmp_path, events).append("start", {})
    whole = (tmp_path / chain_module.CHAIN_NAME).read_bytes()
    (tmp_path / chain_module.CHAIN_NAME).write_bytes(whole + whole[:40])
    with events.open("a") as file:
        file.write(": 3}\n")
    assert len(links(tmp_path)) == 1
    chain_module.Chain(tmp_path, events).append("end", {})
    first, second = links(tmp_path)
    assert second.prev == first.link
    assert (first.events.end, second.events.begin, second.events.end) == (18, 18, 27)


def test_a_failed_link_is_written_with_the_next(tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_module.Chain(tmp_path, events)
    chain.append("start", {})
    before = (tmp_path / chain_module.CHAIN_NAME).read_bytes()
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
        with pytest.raises(OSError, match="only a part"):
            chain.append("checkpoint", {})
    assert (tmp_path / chain_module.CHAIN_NAME).read_bytes() == before
    chain.append("end", {})
    assert [link.kind for link in links(tmp_path)] == ["start", "checkpoint", "end"]


def damaged(directory: Path) -> str:
    *_, last = chain_module.read_links(directory / chain_module.CHAIN_NAME)
    assert isinstance(last, chain_module.DamagedLinkError)
    return str(last)


def test_changed_and_moved_links_are_named(tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    for directory in (tmp_path, tmp_path / "other"):
        chain = chain_module.Chain(directory, events)
        for kind in ("start", "checkpoint", "checkpoint", "end"):
            chain.append(kind, {"step": 3, "of": str(directory)})
    path = tmp_path / chain_module.CHAIN_NAME
    one, two, three, four = path.read_bytes().splitlines(keepends=True)
    theirs = (tmp_path / "other" / chain_module.CHAIN_NAME).read_bytes().splitlines(keepends=True)
    monkeypatch.setattr("core.runs.record.chain.LINK_LIMIT", 1000)
    for lines, told in (
        ((one, theirs[1]), "line 2: it does not follow from the line before"),
        ((one, b"[" * 2000 + b"\n"), "chain.jsonl, line 2: it is too long for a link"),
        ((one, two.replace(b'"step":3', b'"step":4'), three, four), "line 2: its digest is not that of its content"),
        ((one, three, four), "line 2: it is link 2: links were removed, added or moved"),
        ((one, three, two, four), "line 2: it is link 2"),
        ((two, three, four), "line 1: it is link 1"),
        ((one, b"nonsense\n", three), "line 2: it is not a link"),
    ):
        path.write_bytes(b"".join(lines))
        assert told in damaged(tmp_path)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_line_is_a_link_or_refused(line: bytes | str) -> None:
    with pytest.raises(chain_module.DamagedLinkError):
        chain_module.parse_link(line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass"))
