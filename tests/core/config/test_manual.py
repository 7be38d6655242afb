"""The long help and the declarations belong together, one to one."""

from __future__ import annotations

import re

from core.config.schema import MANUAL, Option, find_option, manual, options
from tests.cases import cases

EVERY = list(options())
_NAMED = re.compile(r"\b([a-z]+\.[a-z]+(?:_[a-z]+)*)\b")


def test_every_option_has_an_entry_and_every_entry_an_option() -> None:
    declared, described = [option.name for option in EVERY], list(manual())
    assert set(described) == set(declared), f"{MANUAL.name} and schema.py differ; mend {MANUAL.name}"
    assert described == declared, f"{MANUAL.name} is in another order than schema.py"


@cases("option", EVERY, ids=lambda option: option.name)
def test_an_entry_says_something(option: Option) -> None:
    entry = option.manual
    assert entry is manual()[option.name]
    sentences = re.findall(r"[^.!?]+(?:\.[^\s][^.!?]*)*[.!?](?=\s|$)", entry.about)
    assert 2 <= len(sentences) <= 6, entry.about
    assert entry.about.endswith(".")
    for phrase in (entry.memory, entry.time, entry.source):
        assert not phrase.endswith(".")
        assert len(phrase) <= 120
    assert all("\n" not in text for text in (entry.about, entry.memory, entry.time, entry.source))


@cases("option", EVERY, ids=lambda option: option.name)
def test_options_that_are_named_exist(option: Option) -> None:
    sections = {other.section for other in EVERY}
    text = " ".join([option.help, option.manual.about, option.manual.memory, option.manual.time])
    named = [name for name in _NAMED.findall(text) if name.partition(".")[0] in sections]
    files = {"config.json"}
    assert [name for name in named if find_option(name) is None and name not in files] == []
