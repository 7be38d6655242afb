"""Milliseconds from a key to what it paints, while a run trains: ``python bench/key_to_paint.py --tree before=DIR``.

The app is in a pseudo-terminal. A scripted run makes two steps a second, and a process computes without pause at the
niceness of a worker, as a training on the processor would. A key counts as painted once the output has what it paints:
the cursor's mark, the title of a pane, the letter typed. Trees are measured in turns, several times over.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.app_session import Session, session
from bench.terminal_bytes import trees_of

#: Seconds between two keys, at least and at most.
_PAUSE = (0.06, 0.2)
_CURSOR = "▸".encode()
#: Letters that nothing else on the screen has.
_LETTERS = "ßþðøæłđŋħ"
_PANES = {"1": b"Data", "2": b"Config", "3": b"Train", "4": b"Chat", "5": b"Runs"}
#: The keys that open an input in a pane.
_INPUTS = {"data": "1/", "config": "2/", "chat": "4i", "runs": "5/"}
Times = dict[str, list[float]]


def _wait(app: Session, choose: random.Random) -> None:
    ends = time.monotonic() + choose.uniform(*_PAUSE)
    while (left := ends - time.monotonic()) > 0:
        app.terminal.pump(left)


def _press(app: Session, times: Times, name: str, keys: str, sign: bytes, choose: random.Random) -> None:
    _wait(app, choose)
    seconds = app.seconds_to(keys, sign)
    # What is not painted at all counts as the longest wait.
    times[name].append(seconds if seconds is not None else 5.0)


def measure(app: Session, keys: int, choose: random.Random) -> Times:
    """Press keys of each kind; returns the seconds to their paint."""
    times: Times = defaultdict(list)
    for pane, number in (("data", "1"), ("config", "2"), ("runs", "5")):
        app.cost(number)
        for place in range(keys):
            _press(app, times, f"{pane}: cursor", "j" if place % 10 < 7 else "k", _CURSOR, choose)
    app.cost("5")
    for _ in range(max(keys // 3, 2)):
        for number, title in _PANES.items():
            _press(app, times, f"to {title.decode().lower()}", number, title, choose)
    for pane, opening in _INPUTS.items():
        for key in opening:
            app.cost(key)
        for place in range(keys):
            letter = _LETTERS[place % len(_LETTERS)]
            _press(app, times, f"{pane}: typing", letter, letter.encode(), choose)
        app.cost("\x1b")
        app.cost("\x1b")
    return times


def _summary(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)] * 1000, 1),
        "keys": len(ordered),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=20, help="keys of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=DIR", help="a source tree to measure")
    parser.add_argument("--size", default="120x34", metavar="COLUMNSxROWS")
    arguments = parser.parse_args()
    columns, rows = map(int, arguments.size.split("x"))
    found: dict[str, Times] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    for round_ in range(arguments.rounds):
        for name, tree in trees_of(arguments).items():
            with session(tree, (columns, rows), growing=True, busy=True) as app:
                before = app.cpu_seconds
                times = measure(app, arguments.keys, random.Random(round_))
                seconds[name].append(app.cpu_seconds - before)
            for kind, values in times.items():
                found.setdefault(name, defaultdict(list))[kind] += values
    result = {
        name: {
            "all": _summary([value for values in times.values() for value in values]),
            **{kind: _summary(values) for kind, values in times.items()},
            "processor_s_of_a_round": round(statistics.median(seconds[name]), 2),
        }
        for name, times in found.items()
    }
    print(json.dumps({arguments.size: result}, indent=1))


if __name__ == "__main__":
    main()
