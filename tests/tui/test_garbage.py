"""Garbage collection: objects that live as long as the app are not traversed again."""

from __future__ import annotations

import subprocess
import sys


def test_what_is_there_is_left_alone() -> None:
    code = (
        "import gc; from tui.app import spare_the_screen; kept = [[n] for n in range(1000)]; spare_the_screen();"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold())"
    )
    # In a process of its own: nothing there is ever freed afterwards.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == ["True", "(10000, 20, 20)\n"]
