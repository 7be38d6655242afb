"""Safe paths below a directory, with links at every position."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.hub.store import safe_path
from tests.cases import cases


def test_names_lie_below_the_directory_whether_or_not_they_are_there(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert safe_path(root, "a" * 40, "data/x.jsonl") == root / ("a" * 40) / "data" / "x.jsonl"
    (root / "data").mkdir(parents=True)
    assert safe_path(root, "data") == root / "data"


def test_the_directory_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert safe_path(tmp_path / "root", "x") == tmp_path / "root" / "x"


@cases("target", ["../other", "inside", "nowhere", "link", "../root/inside", "/"])
def test_a_link_below_it_is_refused_wherever_it_leads(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(target)
    for names in (("link",), ("link", "x.jsonl"), ("link/x/y.jsonl",)):
        with pytest.raises(UserError, match="is a link") as caught:
            safe_path(root, *names)
        assert str(root) in caught.value.hint


@given(st.lists(st.text(alphabet="a.\\/\0~é\ud800 ", min_size=0, max_size=12), min_size=1, max_size=3))
def test_no_name_leads_outside(names: list[str]) -> None:
    root = Path("/nowhere/root")
    try:
        path = safe_path(root, *names)
    except UserError:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert ".." not in path.parts
