"""Bytes a second that the app writes to its terminal while a run trains: ``python bench/terminal_bytes.py``.

The run is scripted: two steps a second, device samples, evaluations and checkpoints in a real run directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tui.terminal import ROOT, Terminal


def measure(size: tuple[int, int], seconds: float, before: int, keys: str = "") -> float:
    """Bytes per second after the app has attached and settled."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"LOCALTUNE_HOME": home, "XDG_CONFIG_HOME": home}
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.tui.scripted_run", home, "--before", str(before), "--total", "1000"], cwd=ROOT
        )
        try:
            with Terminal.app(size=size, environment=environment) as terminal:
                terminal.wait_for(lambda: f"{before + 2}/1000" in terminal.text, 60)
                terminal.press(keys)
                settled = time.monotonic() + 6
                while time.monotonic() < settled:
                    terminal.pump(0.2)
                begun, length = time.monotonic(), len(terminal.output)
                while time.monotonic() < begun + seconds:
                    terminal.pump(0.2)
                return (len(terminal.output) - length) / (time.monotonic() - begun)
        finally:
            writer.terminate()
            writer.wait()


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    result = {
        f"{size[0]}x{size[1]} after {before} steps": round(measure(size, arguments.seconds, before) / 1000, 2)
        for size, before in (((200, 50), 40), ((200, 50), 700), ((80, 24), 40))
    }
    print(json.dumps({"kB_per_second": result}, indent=1))


if __name__ == "__main__":
    main()
