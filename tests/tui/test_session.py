"""The session file: whatever is in it is a session or none, and it is private."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import paths
from tests.cases import cases
from tui.session import (
    LIMIT,
    DataPlace,
    Session,
    forget_session,
    parse_session,
    read_session,
    session_path,
    write_session,
)

PLACES = st.builds(
    DataPlace, st.text("abc/#.\ud800é", min_size=1), st.integers(0, 1 << 40), st.text("a_"), st.booleans()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("config", "draft", "origin", "option", "data", "pane", "zoomed", "run", "live")


@given(
    st.builds(
        Session,
        config=st.text("abc/ é\ud800", max_size=30),
        draft=st.text("0123456789abcdef", max_size=16),
        origin=st.text("abc/-", max_size=20),
        option=st.text("abc._", max_size=20),
        data=st.none() | PLACES,
        pane=st.sampled_from(["", "data", "chat"]),
        zoomed=st.booleans(),
        run=st.text("abc/-", max_size=20),
        live=st.booleans(),
        time=st.floats(0, 1e10),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_session_is_read_as_it_was_written(session: Session) -> None:
    write_session(session)
    found = read_session()
    assert found == session
    assert found is not None
    assert found.time == session.time


def test_the_file_is_private_and_can_be_forgotten() -> None:
    write_session(Session())
    assert stat.S_IMODE(session_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(session_path().parent.stat().st_mode) == 0o700
    assert [path.name for path in paths.home().iterdir()] == ["session.json"]
    forget_session()
    forget_session()
    assert read_session() is None


@given(JSON | st.fixed_dictionaries({"time": st.floats() | st.integers()}, optional=dict.fromkeys(NAMES, JSON)))
def test_any_value_is_a_session_or_none(content: Any) -> None:
    found = parse_session(content)
    if found is None:
        return
    assert found.time >= 0
    for name in ("config", "draft", "origin", "option", "pane", "run"):
        assert isinstance(getattr(found, name), str)
        assert "\0" not in getattr(found, name)
    assert found.data is None or found.data.row >= 0


@cases(
    "raw",
    [
        *(b"", b"{", b'{"time": 1', b"[]", b"null", b"\xff\xfe", b'{"config": "/a.toml"}', b'{"time": true}'),
        *(b'{"time": NaN}', b'{"time": 1e400}', b"[" * 100_000),
        b'{"time": 1, "config": "' + b"x" * LIMIT + b'"}',
    ],
)
def test_a_torn_or_foreign_file_is_no_session(raw: bytes) -> None:
    paths.make_private_dir(paths.home())
    session_path().write_bytes(raw)
    assert read_session() is None


def test_what_is_of_another_type_is_left_out() -> None:
    data = {"path": "/rows.csv", "row": -3, "filter": [], "tokens": "yes"}
    content: dict[str, Any] = {"time": 5, "pane": "data", "live": True, "data": data}
    content |= {"config": 7, "draft": None, "run": "/a\0b", "option": "x" * 5000, "zoomed": 1, "later": {}}
    found = parse_session(json.loads(json.dumps(content)))
    assert found == Session(pane="data", live=True, data=DataPlace("/rows.csv"))


def test_where_it_cannot_be_written_the_app_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "file"))
    write_session(Session())
    assert read_session() is None
    forget_session()
