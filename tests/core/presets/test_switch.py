"""Switching from preset to preset: the user's values stay, the former preset's values go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.document import ConfigDocument
from core.config.schema import options
from core.errors import UserError
from core.presets.library import find_preset, presets
from core.presets.switch import Chosen, apply_switch, chosen_in, note_chosen, note_preset, plan_switch, preset_in
from tests.cases import cases, tables
from tests.core.config.strategies import CHANGES

TABLES = tables(__file__)

MINE = '# mine\n[model]\nbase = "m" # my model\n[data]\ntrain = "rows.jsonl"\n'
NAMES = st.sampled_from(sorted(presets()))


def take(document: ConfigDocument, name: str, *, keep_own: bool = True) -> None:
    apply_switch(document, plan_switch(document, find_preset(name), keep_own=keep_own))


def test_a_preset_is_written_and_named() -> None:
    document = ConfigDocument(MINE)
    assert preset_in(document) is None
    assert preset_in(ConfigDocument("# preset: 99gb\n")) is None
    take(document, "24gb-7b")
    assert document.dumps().startswith("# preset: 24gb-7b\n# mine\n")
    assert '"m" # my model' in document.dumps()
    preset = preset_in(document)
    assert preset is not None
    assert preset.name == "24gb-7b"
    assert all(document.get(name) == value for name, value in preset.values.items())
    document.validate()


def test_what_the_user_wrote_stays_and_what_goes_with_it_too() -> None:
    document = ConfigDocument(MINE + "[method]\nrank = 8 # small\n")
    switch = plan_switch(document, find_preset("24gb-7b"))
    assert [(change.option, change.after) for change in switch.kept] == [("method.rank", 32), ("method.alpha", 64.0)]
    apply_switch(document, switch)
    assert "rank = 8 # small" in document.dumps()
    assert document.get("method.alpha") is None


def test_all_can_be_replaced() -> None:
    document = ConfigDocument(MINE + "[train]\nmax_steps = 7\nlearning_rate = 1.0\nseed = 5\n")
    preset = find_preset("24gb-7b")
    apply_switch(document, plan_switch(document, preset, max_length=2048, keep_own=False))
    wanted = {"max_steps": None, "learning_rate": 2e-4, "seed": 5, "max_length": 2048}
    assert {name: document.get(f"train.{name}") for name in wanted} == wanted
    assert document.get("model.base") == "m"


def test_writing_a_default_down_is_no_change_that_is_felt() -> None:
    switch = plan_switch(ConfigDocument(MINE), find_preset("24gb-7b"))
    assert "method.name" in {change.option for change in switch.changes}
    assert "method.name" not in {change.option for change in switch.felt}


@cases(("text", "noted"), TABLES["the_note_is_in_the_head"])
def test_the_note_is_in_the_head(text: str, noted: str) -> None:
    assert note_preset(text, "x") == noted


@cases(("text", "noted"), TABLES["what_was_chosen_is_noted_below_the_preset"])
def test_what_was_chosen_is_noted_below_the_preset(text: str, noted: str) -> None:
    assert note_chosen(text, Chosen("x", {"data.eval_share": 0.1})) == noted


@given(CHANGES)
def test_what_was_chosen_is_read_as_it_was_noted(changes: list[tuple[str, object]]) -> None:
    chosen = Chosen("24gb-7b", dict(changes))
    document = ConfigDocument(note_chosen(MINE, chosen))
    assert chosen_in(document) == chosen
    assert document.dumps().endswith(MINE)


def test_a_section_that_is_none_leaves_the_text_as_it_was() -> None:
    document = ConfigDocument("method = 3\n")
    switch = plan_switch(document, find_preset("24gb-7b"))
    with pytest.raises(UserError, match="method must be a section"):
        apply_switch(document, switch)
    assert document.dumps() == "method = 3\n"


@given(CHANGES, NAMES, NAMES)
def test_going_on_from_any_preset_is_as_going_there_at_once(
    changes: list[tuple[str, object]], first: str, last: str
) -> None:
    written = [(name, value) for name, value in changes if presets()[first].values.get(name) != value]
    through, direct = ConfigDocument(MINE), ConfigDocument(MINE)
    for document in (through, direct):
        for name, value in written:
            document.set(name, value)
    take(through, first)
    take(through, last)
    take(direct, last)
    for option in options():
        assert through.get(option.name) == direct.get(option.name), option.name
    assert plan_switch(through, find_preset(last)).changes == ()
