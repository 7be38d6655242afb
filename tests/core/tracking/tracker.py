"""A tracker's process with fake libraries: ``python -m tests.core.tracking.tracker DIRECTORY …``."""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv.pop(1))
    runpy.run_module("core.tracking", run_name="__main__", alter_sys=True)
