"""Seconds to the first paint, the first page of a dataset and the first row as tokens: ``python bench/first_use.py``.

The app is started through a pseudo-terminal with the sample tickets and a model that is given, and typed at as a person
does. ``--against TREE`` measures another checkout too, in turns; the table has the medians of both.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.tui.terminal import Terminal

SIZE = (200, 50)


def first_use(tree: Path, model: Path, data: Path) -> dict[str, float]:
    """Seconds to the first paint, row and chat template of a checkout's app."""
    found = {}
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "mine.toml"
        config.write_text(f'model.base = "{model}"\ndata.train = "{data}"\n')
        variables = {"LOCALTUNE_HOME": home, "XDG_CONFIG_HOME": home, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
        with Terminal.app(str(config), size=SIZE, environment=variables) as terminal:

            def seconds_to(pattern: str, begun: float) -> float:
                terminal.wait_for(lambda: re.search(pattern, terminal.text), 120)
                return time.monotonic() - begun

            found["first paint"] = seconds_to("quit", terminal.started)
            found["first page"] = seconds_to("Ticket:", terminal.started)
            found["token counts in the list"] = seconds_to(r"1 +\d+ +\d+ +Ticket:", terminal.started)
            # Work that is still running when the first page is there is not a part of the key's time.
            terminal.wait_for_text("no problems", 120)
            terminal.press("1")
            # The next key is for the pane that has the focus then.
            terminal.wait_for(lambda: "2 Config ·" not in terminal.text, 120)
            begun = time.monotonic()
            terminal.press("m")
            found["row as tokens after m"] = seconds_to(r"as tokens · \d+ tokens", begun)
            begun = time.monotonic()
            terminal.press("T")
            found["template preview after T"] = seconds_to(r"row 1 · \d+ tokens · \d+ learned", begun)
    return found


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a model's directory")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    trees = {"here": ROOT} | ({"there": arguments.against.resolve()} if arguments.against else {})
    data = ROOT / "sample_data" / "tickets_train.jsonl"
    values: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
    for _ in range(arguments.runs):
        for name, tree in trees.items():
            for what, seconds in first_use(tree, arguments.model.resolve(), data).items():
                values[name].setdefault(what, []).append(seconds)
    medians = {
        name: {what: round(statistics.median(seconds), 3) for what, seconds in found.items()}
        for name, found in values.items()
    }
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
