"""Memory of the app: what its process holds with nothing opened, at each pane, and with a record of a million steps.

    python bench/app_memory.py                     # a few minutes, most of them to make and to read the record
    python bench/app_memory.py --steps 100000 --out figures.json

It makes a home with some ended runs and a data file, opens the app in a pseudo-terminal, shows one pane after the
other, and reads ``/proc/PID/smaps_rollup`` at each: ``rss`` is all that is resident, ``pss`` counts what several
processes share (libraries, the interpreter) by its part. Megabytes are decimal. The processes that the app starts, such
as the sandbox that reads foreign files, are not in it; their sum is given beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from bench.app_session import SIZES, Session, make_home
from bench.runs import make_run
from tests.tui.terminal import ROOT, Terminal

PANES = {"1": "Data", "2": "Config", "3": "Train", "4": "Chat", "5": "Runs"}


def held(pid: int) -> dict[str, float]:
    """Resident memory of a process, in MB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = round(int(rest.split()[0]) * 1024 / 1e6, 1)
    return found


def helpers(pid: int) -> float:
    """The proportional memory of the processes that a process has started, and of theirs, in MB."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="utf-8").split():
            total += held(int(child))["pss"] + helpers(int(child))
    return round(total, 1)


def measure(size: tuple[int, int], steps: int) -> dict[str, dict[str, float]]:
    """The app at one size of a terminal, pane by pane, then with a long record."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["LOCALTUNE_HOME"] = name
        config = make_home(Path(name))
        make_run(0, steps, "million")
        environment = {"LOCALTUNE_HOME": name, "XDG_CONFIG_HOME": name, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        with Terminal.app(str(config), size=size, environment=environment) as terminal:
            terminal.wait_for(lambda: "rows.toml" in terminal.text, 120)
            app = Session(terminal)
            app.settle(1.0)
            for key, pane in PANES.items():
                terminal.press(key)
                app.settle(2.0)
                figures[pane] = {**held(terminal.pid), "helpers": helpers(terminal.pid)}
        with Terminal.app("--run", "million", size=size, environment=environment) as terminal:
            terminal.wait_for(lambda: "reading the rest" in terminal.text, 120)
            terminal.wait_for(lambda: "reading the rest" not in terminal.text, 900)
            Session(terminal).settle(2.0)
            figures[f"{steps:,} steps"] = {**held(terminal.pid), "helpers": helpers(terminal.pid)}
    return figures


def main() -> None:
    """Measure, print, and keep the figures where asked."""
    parser = argparse.ArgumentParser(description="Measure the memory of the app.")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps of the long record")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    args = parser.parse_args()
    figures = {f"{columns}x{rows}": measure((columns, rows), args.steps) for columns, rows in (SIZES[0], SIZES[-1])}
    for size, places in figures.items():
        for place, found in places.items():
            print(f"{size:>7}  {place:<16}  " + "  ".join(f"{name} {value:>6}" for name, value in found.items()))
    if args.out is not None:
        about = {"python": platform.python_version(), "machine": platform.machine(), "steps": args.steps}
        args.out.write_text(json.dumps({**about, "mb": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
