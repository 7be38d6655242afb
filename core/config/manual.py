"""The long help of the options, read from ``manual.toml`` in this directory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli

MANUAL = Path(__file__).with_name("manual.toml")


@dataclass(frozen=True)
class Entry:
    """The manual entry of one option, beyond its declaration; each part on one line.

    Args:
        about: Its effect, when to change it, usual values; a few sentences.
        memory: Its cost in memory or on disk, in a phrase; empty where it is negligible.
        time: Its cost in time, likewise.
        source: The paper or specification that it comes from; empty where there is none.
    """

    about: str = ""
    memory: str = ""
    time: str = ""
    source: str = ""


NOTHING_SAID = Entry()


@functools.cache
def manual() -> Mapping[str, Entry]:
    """The manual: option name to its entry."""
    sections = tomli.loads(MANUAL.read_text(encoding="utf-8"))
    return {
        f"{section}.{key}": Entry(**{part: " ".join(text.split()) for part, text in parts.items()})
        for section, keys in sections.items()
        for key, parts in keys.items()
    }
