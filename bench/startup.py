"""Seconds from exec to the first painted screen of the app, through a pseudo-terminal: ``python bench/startup.py``.

The comparison is what it takes to import transformers' Trainer, which tools built on it wait for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tui.terminal import Terminal


def first_paint(size: tuple[int, int]) -> float:
    """Start the app with an empty home and wait for its last line, which is painted with the first frame."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"LOCALTUNE_HOME": home, "XDG_CONFIG_HOME": home}
        with Terminal.app(size=size, environment=environment) as terminal:
            terminal.wait_for(lambda: "quit" in terminal.text, 60)
            seconds = time.monotonic() - terminal.started
            terminal.press("\x11")
            terminal.wait_for_end()
            return seconds


def import_trainer() -> float:
    """Seconds that a fresh interpreter needs to import transformers.Trainer."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "from transformers import Trainer"], check=True, capture_output=True)
    return time.monotonic() - begun


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--trainer", action="store_true", help="also measure the import of transformers.Trainer")
    arguments = parser.parse_args()
    first_paint((80, 24))  # Once to fill the caches.
    result: dict[str, object] = {}
    for size in ((80, 24), (200, 50)):
        times = [first_paint(size) for _ in range(arguments.runs)]
        result[f"{size[0]}x{size[1]}"] = {"median_s": round(statistics.median(times), 3), "min_s": round(min(times), 3)}
    if arguments.trainer:
        result["transformers_trainer_import_s"] = round(statistics.median(import_trainer() for _ in range(3)), 3)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
