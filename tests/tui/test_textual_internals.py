"""What the app assumes of the inside of Textual: a version that works in another way must be looked at."""

from __future__ import annotations

import inspect
import re

from textual.app import App
from textual.css._style_properties import StringEnumProperty
from textual.widget import Widget


def test_an_update_is_written_under_the_conditions_that_the_image_of_the_terminal_follows() -> None:
    source = inspect.getsource(App._display)
    assert list(inspect.signature(App._display).parameters) == ["self", "screen", "renderable"]
    for condition in ("if self._batch_count:", "self._running", "not self._closed", "not self.is_headless"):
        assert condition in source
    assert set(re.findall(r"self\.(\w+)", source.split("_begin_update")[0])) == {
        *("_batch_count", "_running", "_closed", "is_headless", "_driver", "console")
    }
    assert "self._previous_cursor_position = cursor_position" in source
    assert "renderable.render_segments(console)" in source


def test_panes_are_placed_as_textual_places_widgets() -> None:
    assert callable(Widget._clear_arrangement_cache)
    # Effects of a widget's `display` besides a layout and a repaint.
    source = inspect.getsource(StringEnumProperty.__set__) + inspect.getsource(StringEnumProperty._before_refresh)
    assert "_nodes.updated()" in source
    assert callable(type(Widget()._nodes).updated)


def test_heights_are_kept_by_the_number_of_layout_updates() -> None:
    source = inspect.getsource(Widget._get_box_model)
    assert "self._layout_updates," in source
    assert "self._box_model_cache[cache_key] = model" in source
    assert "if layout and not self._layout_required:" in inspect.getsource(Widget.refresh)
