"""Repository listings: answers of a hub, parsed and validated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.hub.listing import MOST_FILES, is_size, read_listing
from core.hub_uri import is_commit
from tests.cases import cases

REFUSED = yaml.safe_load(Path(__file__).with_name("replies.yaml").read_text(encoding="utf-8"))["listing"]
COMMIT = "a" * 40
SHA1, SHA256 = "b" * 40, "c" * 64


def read(**told: Any) -> Any:
    return read_listing(json.dumps({"sha": COMMIT, **told}).encode(), "hub")


def sibling(**more: Any) -> dict[str, Any]:
    return {"rfilename": "a.jsonl", "size": 3, "blobId": SHA1, **more}


def test_what_a_hub_answers_is_read() -> None:
    large = {"rfilename": "b.jsonl", "size": 130, "blobId": SHA1, "lfs": {"size": 7, "sha256": SHA256}}
    listing = read(siblings=[sibling(), large, {"rfilename": "c", "size": 0}], cardData={"configs": []})
    assert listing.commit == COMMIT
    told = [(file.name, file.size, file.sha256, file.blob) for file in listing.files.values()]
    assert told == [("a.jsonl", 3, "", SHA1), ("b.jsonl", 7, SHA256, SHA1), ("c", 0, "", "")]
    assert listing.card == {"configs": []}
    assert read(cardData="text").card == {}
    assert read(siblings=None).files == {}


@cases(("told", "says"), [*REFUSED, ({"siblings": [None] * (MOST_FILES + 1)}, "100001 files in this repository")])
def test_what_cannot_be_is_a_sentence(told: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read(**told)
    assert caught.value.hint


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([COMMIT, SHA256]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
files = st.fixed_dictionaries(
    {}, optional={"rfilename": values, "size": values, "blobId": values, "lfs": values | st.just({"size": 1})}
)


@given(
    st.binary(max_size=40)
    | st.fixed_dictionaries(
        {"sha": values | st.just(COMMIT)}, optional={"siblings": values | st.lists(files | values), "cardData": values}
    ).map(lambda told: json.dumps(told).encode())
)
def test_any_answer_is_read_or_a_sentence(raw: bytes) -> None:
    try:
        listing = read_listing(raw, "hub")
    except UserError:
        return
    assert is_commit(listing.commit)
    assert all(isinstance(name, str) and is_size(file.size) for name, file in listing.files.items())
