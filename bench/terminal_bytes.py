"""Bytes that the app writes to its terminal: ``python bench/terminal_bytes.py --tree before=DIR --tree after=DIR``.

For each size: every list opened, a movement of the cursor in it, a step of the cursor that scrolls the list, a switch
from one pane to another, a second of training on each pane (the run is scripted: two steps a second, device samples,
evaluations, checkpoints), and a second in which nothing happens. Trees are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.app_session import SIZES, Session, session
from tests.tui.terminal import ROOT

#: Lists that a cursor moves in: the keys that lead there, and those that lead back.
_LISTS = {
    "data": ("1", ""),
    "config": ("2", ""),
    "runs": ("5", ""),
    "presets": ("2P", "\x1b"),
    "saved configurations": ("2O", "\x1b"),
    "help": ("1?", "\x1b"),
    "palette": ("1\x10", "\x1b"),
}
_DOWN = {"palette": "\x1b[B"}
_PANES = ("data", "config", "train", "chat", "runs")


def _moves(app: Session, name: str) -> dict[str, int]:
    """Bytes of opening a list, of a movement of its cursor (the median and the most), and of one that scrolls."""
    there, back = _LISTS[name]
    opening = [app.cost(key) for key in there][-1]
    down = _DOWN.get(name, "j")
    costs = [app.cost(down) for _ in range(7)][1:]
    found = {"opening": opening, "median": round(statistics.median(costs)), "max": max(costs)}
    if name in ("data", "runs"):
        for _ in range(52):
            app.terminal.press(down)
        app.settle()
        found["scrolling"] = round(statistics.median(app.cost(down) for _ in range(5)))
    if back:
        app.cost(back)
    return found


def _switches(app: Session) -> dict[str, int]:
    """Bytes of a switch to each pane from the one before it."""
    app.cost("5")
    return {name: app.cost(str(number)) for number, name in enumerate(_PANES, 1)}


def _rate(app: Session, seconds: float) -> float:
    """Bytes a second while no key is pressed."""
    begun, before = time.monotonic(), len(app.terminal.output)
    while time.monotonic() < begun + seconds:
        app.terminal.pump(0.2)
    return round((len(app.terminal.output) - before) / (time.monotonic() - begun), 1)


def measure(tree: Path, size: tuple[int, int], seconds: float) -> dict[str, object]:
    """Measure one tree at one size."""
    with session(tree, size) as app:
        moves = {name: _moves(app, name) for name in _LISTS}
        switches = _switches(app)
        app.settle(3.0)
        idle = _rate(app, seconds)
    with session(tree, size, growing=True) as app:
        training = {}
        for number, name in enumerate(_PANES, 1):
            app.terminal.press(str(number))
            app.settle(0.3, 2)
            training[name] = _rate(app, seconds)
    return {"move": moves, "switch": switches, "idle_a_second": idle, "training_a_second": training}


def trees_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """The trees of a command line, by name; this one where none is given."""
    named = dict(item.partition("=")[::2] for item in arguments.tree)
    return {name: Path(path).resolve() for name, path in named.items()} or {"this": ROOT}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=DIR", help="a source tree to measure")
    parser.add_argument("--size", action="append", default=[], metavar="COLUMNSxROWS")
    arguments = parser.parse_args()
    sizes = [(int(a), int(b)) for a, b in (size.split("x") for size in arguments.size)] or list(SIZES)
    result: dict[str, dict[str, object]] = {}
    for size in sizes:
        for name, tree in trees_of(arguments).items():
            result.setdefault(f"{size[0]}x{size[1]}", {})[name] = measure(tree, size, arguments.seconds)
    print(json.dumps({"bytes": result}, indent=1))


if __name__ == "__main__":
    main()
