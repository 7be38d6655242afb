"""Bytes that the app writes to a pseudo-terminal: a cursor that moves costs the rows it touches, not the list."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from tests.cases import cases
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal

#: Bytes of a movement of the cursor, and of a switch to another pane, at most.
MOVE, SWITCH = 2000, 8000


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """The app with rows, a configuration and runs, all panes loaded."""
    home = tmp_path_factory.mktemp("home")
    choose = random.Random(5)
    words = ("router", "order", "invoice", "yesterday", "charged", "again", "late", "why")
    rows = [
        {"instruction": " ".join(choose.choices(words, k=30)), "output": " ".join(choose.choices(words, k=20))}
        for _ in range(200)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = home / "rows.toml"
    config.write_text('[data]\ntrain = "rows.jsonl"\n', encoding="utf-8")
    for number in range(8):
        ScriptedRun(home, f"20261101-00000{number}-tickets", total=20).train_to(20).end("finished")
    environment = {"LOCALTUNE_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    with Terminal.app(str(config), size=(120, 34), environment=environment) as opened:
        opened.wait_for(lambda: "rows.toml" in opened.text, 60)
        opened.press("1")
        opened.wait_for(lambda: "used · 0 dropped" in opened.text, 60)
        cost(opened, "5")
        opened.wait_for(lambda: "20261101-000003" in opened.text, 60)
        yield opened


def cost(terminal: Terminal, keys: str) -> int:
    """Bytes written for keys."""
    before = len(terminal.output)
    terminal.press(keys)
    terminal.wait_for_rest()
    return len(terminal.output) - before


@pytest.mark.long
@cases(("there", "back"), [("1", ""), ("2", ""), ("5", ""), ("2P", "\x1b"), ("2O", "\x1b")])
def test_a_cursor_that_moves_costs_two_kilobytes_at_most(terminal: Terminal, there: str, back: str) -> None:
    for key in there:
        cost(terminal, key)
    costs = [cost(terminal, key) for key in "jjjkkj"]
    if back:
        cost(terminal, back)
    # The sum, as the output of a key may come with that of the next on a busy machine.
    assert 0 < sum(costs) <= MOVE * len(costs), costs


@pytest.mark.long
def test_another_pane_costs_what_differs(terminal: Terminal) -> None:
    cost(terminal, "5")
    costs = [cost(terminal, key) for key in "12345"]
    assert 0 < sum(costs) <= SWITCH * len(costs), costs


@pytest.mark.long
def test_the_chart_costs_what_differs(terminal: Terminal) -> None:
    cost(terminal, "5")
    cost(terminal, "\r")
    assert "┤" in terminal.text, terminal.text
    costs = [cost(terminal, key) for key in "hhlhhl"]
    assert "step 19" in terminal.text
    assert 0 < sum(costs) <= MOVE * len(costs), costs
    costs = [cost(terminal, key) for key in ("\x1b", "m", "o", "+", "-", "M", "O")]
    assert 0 < sum(costs) <= SWITCH * len(costs), costs
