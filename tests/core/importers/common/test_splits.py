"""Parts of splits as ``datasets`` writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.importers.common.splits import Part, read_splits
from tests.cases import cases


@cases(
    ("text", "parts"),
    [
        ("", [Part("")]),
        ("train", [Part("train")]),
        ("train+test", [Part("train"), Part("test")]),
        ("train[:10%]", [Part("train", 0, 10, True)]),
        ("train[5%:10%] + test[3:]", [Part("train", 5, 10, True), Part("test", 3)]),
        ("train[-100:]", [Part("train", -100)]),
        ("train[:]", [Part("train")]),
    ],
)
def test_what_is_read(text: str, parts: list[Part]) -> None:
    assert read_splits(text) == parts


@cases("text", ["train[", "train[5]", "train[:5%:2]", "train[a:b]", "train]", "train[5%:10]"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="train"):
        read_splits(text)


@cases(
    ("text", "rows", "share"),
    [
        ("t[:10%]", None, 0.1),
        ("t[90%:]", None, 0.1),
        ("t[-10%:]", None, 0.1),
        ("t[:30]", 120, 0.25),
        ("t[:300]", 120, 1.0),
        ("t[-30:]", 120, 0.25),
        ("t[:30]", None, None),
    ],
)
def test_a_part_of_a_split_is_a_share_of_its_rows(text: str, rows: int | None, share: float | None) -> None:
    (part,) = read_splits(text)
    assert part.share(rows) == share
    assert not part.is_whole


@given(st.text("trains[]%:+-0123456789 ", max_size=14))
def test_any_text_is_parts_or_none(text: str) -> None:
    try:
        parts = read_splits(text)
    except ValueError:
        return
    assert len(parts) == text.count("+") + 1
    assert all(part.share(10) is None or 0 <= (part.share(10) or 0) <= 1 for part in parts)
