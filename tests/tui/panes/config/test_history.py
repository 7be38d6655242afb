"""Undo and redo of a configuration's edits, exact to the byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.config.document import ConfigDocument
from core.presets.library import find_preset, presets
from core.presets.switch import apply_switch, plan_switch
from tests.core.config.strategies import EVERY, value_of
from tui.panes.config.editor import LIMIT, EditHistory
from tui.panes.config.model import ConfigModel

TEXT = (
    '# head\n\n[data]   # rows\ntrain = "rows.jsonl" # mine\n\n[method]\nrank=8 # small\n'
    "# between\nalpha   = 16.0\n\n[train]\n\tepochs = 2.0 # two\n# last words"
)
_VALUE = st.sampled_from(EVERY).flatmap(lambda option: st.tuples(st.just(option.name), value_of(option) | st.none()))
_EDIT = st.one_of(
    _VALUE,
    st.tuples(st.just("preset"), st.sampled_from(sorted(presets()))),
    st.tuples(st.just("rewrite"), st.just("# other\n[data]\ntrain = 'x' # literal\n")),
    st.tuples(st.just("open"), st.just(TEXT)),
)


def edit(model: ConfigModel, name: str, value: Any) -> ConfigModel:
    """Make an edit; returns another model if another configuration is opened."""
    if name == "open":
        return ConfigModel(ConfigDocument(value))
    if name == "preset":
        apply_switch(model.document, plan_switch(model.document, find_preset(value)))
    elif name == "rewrite":
        model.document.rewrite(value)
    else:
        model.document.set(name, value)
    return model


@given(st.lists(_EDIT, max_size=12), st.data())
def test_any_edits_are_undone_and_redone_to_the_byte(edits: list[tuple[str, Any]], data: st.DataObject) -> None:
    model = ConfigModel(ConfigDocument(TEXT))
    history = EditHistory(model)
    trail = [(model, TEXT)]
    for name, value in edits:
        model = edit(model, name, value)
        if history.record(model, "x"):
            trail.append((model, model.document.dumps()))
    place = len(trail) - 1
    for back in data.draw(st.lists(st.booleans(), max_size=30)):
        step = history.undo() if back else history.redo()
        assert (step is None) == (place == 0 if back else place == len(trail) - 1)
        place = max(place - 1, 0) if back else min(place + 1, len(trail) - 1)
        assert history.present.model is trail[place][0]
        assert history.present.model.document.dumps() == trail[place][1]
    while history.undo() is not None:
        pass
    assert history.present.model is trail[0][0]
    assert trail[0][0].document.dumps() == TEXT
    while history.redo() is not None:
        pass
    assert history.present.model.document.dumps() == trail[-1][1]


def test_an_edit_after_an_undo_ends_what_could_be_done_again() -> None:
    model = ConfigModel(ConfigDocument(TEXT))
    history = EditHistory(model)
    for rank in range(LIMIT + 10):
        edit(model, "method.rank", rank + 20)
        history.record(model)
    assert history.undo() is not None
    edit(model, "method.rank", 1)
    history.record(model)
    assert history.redo() is None
    model.document.rewrite(f"{model.document.dumps()} # a comment")
    assert history.record(model)
    step = history.undo()
    assert step is not None
    assert step.tell_undone() == "Undone: the text; no option has another value."
    steps = 0
    while history.undo() is not None:
        steps += 1
    assert steps == LIMIT - 1
