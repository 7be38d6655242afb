"""A layout for a widget whose height may have changed."""

from __future__ import annotations

from textual.widget import Widget


def relayout(widget: Widget) -> None:
    """Have a widget measured and painted again.

    ``refresh(layout=True)`` alone would keep a height that was worked out since an earlier change of the same turn:
    Textual keeps heights by the number of layouts asked for, and counts those of one turn once.
    """
    widget._box_model_cache.clear()
    widget.refresh(layout=True)
