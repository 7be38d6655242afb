"""Hypothesis strategies for events."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

from core.runs import events

_TEXT = st.text(st.characters(), max_size=30)
_BY_ANNOTATION: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63),
    "float": st.floats(),
    "str": _TEXT,
    "dict[str, int]": st.dictionaries(_TEXT, st.integers(0, 2**40), max_size=3),
    "list[dict[str, Any]]": st.lists(
        st.dictionaries(
            _TEXT, st.one_of(st.none(), st.integers(), _TEXT, st.floats(allow_nan=False, allow_infinity=False))
        ),
        max_size=2,
    ),
}


def _field(annotation: str) -> st.SearchStrategy[Any]:
    strategy = _BY_ANNOTATION[annotation.removesuffix(" | None")]
    return st.none() | strategy if annotation.endswith(" | None") else strategy


def _of(kind: type[events.Event]) -> st.SearchStrategy[events.Event]:
    return st.builds(kind, **{item.name: _field(str(item.type)) for item in dataclasses.fields(kind)})


EVENTS: st.SearchStrategy[events.Event] = st.one_of([_of(kind) for kind in events._TYPES.values()])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
