from __future__ import annotations

import time

from textual.app import App

from tui.controllers.desktop import Desktop
from tui.state import AppState


def test_the_header_of_an_app_without_screens_is_left_alone() -> None:
    Desktop(App(), AppState(), time.time).show_header()
