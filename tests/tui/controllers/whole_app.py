"""Helpers for tests of the whole app with its configuration."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot

from tests.tui.harness import pane_of, wait_for
from tui.app import LocaltuneApp


async def ready(pilot: Pilot[Any], app: LocaltuneApp) -> None:
    """Wait until the configuration is there, and its form."""
    await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)


def value(app: LocaltuneApp, name: str) -> Any:
    """An option of the configuration, as it is written; None where it is not."""
    assert app.state.document is not None
    return app.state.document.get(name)
