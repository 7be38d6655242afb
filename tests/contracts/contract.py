"""The recorded contracts, and their comparison with the present code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.contracts.talking import JSON

WRITTEN = Path(__file__).with_name("contracts.json")
#: Contracts that only a run shows, not the code; ``test_continues.py`` looks at them.
SEEN_IN_A_RUN = (
    "files of a finished run",
    "keys of a manifest",
    "keys of state.json",
    "answers on the control socket",
    "a refusal on the control socket",
    "fields of a run's summary",
)


def written_down() -> dict[str, JSON]:
    """Each contract by name."""
    found: dict[str, JSON] = json.loads(WRITTEN.read_text(encoding="utf-8"))
    return found


def assert_contract(name: str, found: JSON) -> None:
    """Fail if something differs from a contract; the message lists missing, new and changed parts."""
    changes = list(compare(written_down()[name], found))
    assert not changes, "\n".join([f"The contract '{name}' has changed (see {WRITTEN.name}):", *changes])


def compare(wanted: JSON, found: JSON, place: str = "") -> Iterator[str]:
    """The differences, a line each; the order of keys in an object does not count, that of a list does."""
    beginning = f"{place} / " if place else ""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            where = f"{beginning}{key}"
            if key not in found:
                yield f"  missing: {where}"
            elif key not in wanted:
                yield f"  new: {where}{f' = {json.dumps(found[key])}' if found[key] else ''}"
            else:
                yield from compare(wanted[key], found[key], where)
    elif isinstance(wanted, list) and isinstance(found, list) and all(isinstance(x, str) for x in wanted + found):
        yield from (f"  missing: {beginning}{item}" for item in wanted if item not in found)
        yield from (f"  new: {beginning}{item}" for item in found if item not in wanted)
        if wanted != found and sorted(map(str, wanted)) == sorted(map(str, found)):
            yield f"  another order: {place or 'it'}: {', '.join(map(str, found))}"
    elif wanted != found or type(wanted) is not type(found):
        yield f"  another: {place or 'it'} was {json.dumps(wanted)} and is {json.dumps(found)}"


def keys_of(value: JSON) -> JSON:
    """The keys in a value, with the objects of a list merged; any other value is an empty text."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        merged: dict[str, JSON] = {}
        for item in value:
            if isinstance(item, dict):
                merged |= {key: keys_of(inner) for key, inner in item.items() if not merged.get(key)}
        return {"each": merged} if merged else ""
    return ""
