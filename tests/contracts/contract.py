"""The recorded contracts, and their comparison with the present code."""

from __future__ import annotations

import difflib
import json
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
    """Fail if something differs from a contract; the message has the difference, line by line. The order of keys in an
    object does not count, that of a list does."""
    wanted, now = (
        json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
        for value in (written_down()[name], found)
    )
    changes = difflib.unified_diff(wanted, now, WRITTEN.name, "the code", lineterm="")
    assert wanted == now, "\n".join([f"The contract '{name}' has changed:", *changes])


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
