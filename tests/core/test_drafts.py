"""Drafts: private files that outlive their process, and belong to it while it lives."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import drafts, paths
from core.drafts import KEPT, Draft, find_draft, list_drafts, remove_draft, write_draft

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def orphan(subject: str, time: float = 1e9, **data: Any) -> Draft:
    """A draft of a process that has gone."""
    draft = Draft("config", subject, data, time)
    write_draft(draft)
    path = paths.drafts_dir() / f"{draft.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "another boot"}))
    return draft


def test_a_draft_is_read_as_it_was_written_and_is_private() -> None:
    draft = Draft("config", "/a/b.toml", {"text": "é \ud800 \x00", "n": [1, None]})
    write_draft(draft)
    (found,) = list_drafts("config")
    assert replace(found, pid=None, started=None) == draft
    (path,) = paths.drafts_dir().iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list_drafts("chat") == []
    remove_draft(draft.id)
    remove_draft(draft.id)
    assert list_drafts("config") == []


def test_while_its_process_lives_a_draft_is_its_own() -> None:
    write_draft(Draft("config", "/a.toml", {}))
    assert find_draft("config", "/a.toml") is None
    assert not list_drafts("config")[0].is_left
    script = "from core.drafts import Draft, write_draft; write_draft(Draft('config', '/a.toml', {'by': 'another'}))"
    subprocess.run([sys.executable, "-c", script], check=True)
    found = find_draft("config", "/a.toml")
    assert found is not None
    assert found.data == {"by": "another"}
    assert find_draft("config", "/b.toml") is None
    assert find_draft("chat", "/a.toml") is None


def test_the_newest_is_found_and_listed_first() -> None:
    old, new = orphan("/a.toml", 1e9, text="old"), orphan("/a.toml", 2e9, text="new")
    found = find_draft("config", "/a.toml")
    assert found is not None
    assert found.id == new.id
    assert [draft.id for draft in list_drafts("config")] == [new.id, old.id]


def test_only_so_many_are_kept_and_none_that_is_being_written() -> None:
    mine = Draft("config", "/mine.toml", {}, 1.0)
    write_draft(mine)
    oldest = orphan("/oldest.toml", 2.0)
    for number in range(KEPT):
        orphan(f"/{number}.toml", 1e9 + number)
    write_draft(Draft("config", "/new.toml", {}))
    kept = {draft.id for draft in list_drafts("config")}
    assert mine.id in kept
    assert oldest.id not in kept
    assert len(kept) == KEPT + 2


def test_one_that_is_too_large_leaves_the_earlier_state(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft("config", "/a.toml", {"text": "small"})
    write_draft(draft)
    monkeypatch.setattr(drafts, "LIMIT", 1000)
    with pytest.raises(OSError, match="larger"):
        write_draft(Draft("config", "/a.toml", {"text": "x" * 1000}, id=draft.id))
    assert list_drafts("config")[0].data == {"text": "small"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=40)
    | st.fixed_dictionaries(
        {},
        optional={
            "kind": st.just("config") | JSON,
            "subject": st.text() | JSON,
            "data": st.dictionaries(st.text(), JSON, max_size=2) | JSON,
            "time": st.floats() | JSON,
            "pid": JSON,
            "started": JSON,
        },
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_file_is_a_draft_or_none(raw: bytes) -> None:
    path = paths.make_private_dir(paths.drafts_dir()) / "0.json"
    path.write_bytes(raw)
    for draft in list_drafts("config"):
        assert draft.id == "0"
        assert isinstance(draft.is_left, bool)
