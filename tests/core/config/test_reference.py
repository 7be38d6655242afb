"""The manual and the reference page hold every option, and options that others do not use name their users."""

from __future__ import annotations

import re
from pathlib import Path

from core.config.derived import _USERS, used_by
from core.config.reference import render_reference
from core.config.rules.check import RULES
from core.config.schema import MANUAL, Option, find_option, manual, options
from tests.cases import cases

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    command = "localtune-tui schema --markdown --out docs/reference/configuration.md"
    assert PAGE.read_text(encoding="utf-8") == render_reference(), f"run: {command}"


def test_every_option_and_rule_is_on_it_once_and_linked() -> None:
    page = render_reference()
    for option in options():
        assert page.count(f"\n### {option.name}\n") == 1
        assert f"[`{option.name}`](#{option.name.replace('.', '')})" in page
        assert " ".join(option.manual.about.split()) in " ".join(page.split())
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 120
    assert all(f"| {rule.says} | {rule.level} |" in page for rule in RULES)


EVERY = list(options())
_NAMED = re.compile(r"\b([a-z]+\.[a-z]+(?:_[a-z]+)*)\b")


def test_every_option_has_an_entry_and_every_entry_an_option() -> None:
    declared, described = [option.name for option in EVERY], list(manual())
    assert set(described) == set(declared), f"{MANUAL.name} and schema.py differ; mend {MANUAL.name}"
    assert described == declared, f"{MANUAL.name} is in another order than schema.py"


@cases("option", EVERY, ids=lambda option: option.name)
def test_options_that_are_named_exist(option: Option) -> None:
    sections = {other.section for other in EVERY}
    text = " ".join([option.help, option.manual.about, option.manual.memory, option.manual.time])
    named = [name for name in _NAMED.findall(text) if name.partition(".")[0] in sections]
    files = {"config.json"}
    assert [name for name in named if find_option(name) is None and name not in files] == []


def test_every_name_is_an_option_and_every_user_a_value() -> None:
    known = {option.name: option for option in options()}
    for name, (decides, users) in _USERS.items():
        assert name in known
        assert set(users) < set(known[decides].choices)


def test_options_of_other_methods_name_theirs() -> None:
    values = {"method.name": "qlora", "train.objective": "sft"}
    assert used_by("method.trainable_layers", values.__getitem__) == ("freeze",)
    assert used_by("method.rank", values.__getitem__) == ()
    assert used_by("train.beta", values.__getitem__) == ("dpo", "orpo", "kto")
    assert used_by("train.epochs", values.__getitem__) == ()
    values["method.name"] = "full"
    assert used_by("method.rank", values.__getitem__) == ("qlora", "lora")
