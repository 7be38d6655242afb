"""A session of the app for the measurements: a home with data and runs, the app in a pseudo-terminal, keys pressed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runs.record.store import Run
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import ROOT, Terminal
from tests.waiting import wait_for

#: Sizes that are measured, columns and rows.
SIZES = ((80, 24), (120, 34), (200, 50))
#: Seconds without output after which a key counts as answered.
_QUIET = 0.3
_WORDS = ("router", "order", "invoice", "the", "my", "since", "yesterday", "update", "why", "late", "charged", "again")


@dataclass
class Session:
    """The app in a terminal of its own."""

    terminal: Terminal

    def settle(self, quiet: float = _QUIET, longest: float = 10.0) -> int:
        """Read until there has been no output for a while; returns the number of bytes."""
        before = len(self.terminal.output)
        ends = time.monotonic() + longest
        while time.monotonic() < ends and self.terminal.pump(quiet):
            pass
        return len(self.terminal.output) - before

    def cost(self, keys: str) -> int:
        """Bytes written for keys, until there is no more output."""
        self.terminal.press(keys)
        return self.settle()

    def seconds_to(self, keys: str, sign: bytes, longest: float = 5.0) -> float | None:
        """Seconds from keys to output with a sign in it; None if it does not come."""
        begun, length = time.monotonic(), len(self.terminal.output)
        self.terminal.press(keys)
        while time.monotonic() < begun + longest:
            if self.terminal.pump(0.01) and sign in self.terminal.output[length:]:
                return time.monotonic() - begun
        return None

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the app so far."""
        fields = Path(f"/proc/{self.terminal.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_home(home: Path, runs: int = 60) -> Path:
    """Fill a home with a data file, a configuration of it and ended runs; returns the configuration."""
    choose = random.Random(3)
    rows = home / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for _ in range(2000):
            question, answer = (" ".join(choose.choices(_WORDS, k=choose.randint(6, 40))) for _ in range(2))
            file.write(json.dumps({"instruction": question, "output": answer}) + "\n")
    config = home / "rows.toml"
    config.write_text(f'[data]\ntrain = "{rows}"\n[method]\nrank = 32\n', encoding="utf-8")
    for number in range(runs):
        script = ScriptedRun(home, f"20261101-{number:06d}-tickets", total=20, start=1_790_000_000.0 + 600 * number)
        script.begin()
        script.steps(1, 20)
        script.end("finished")
    return config


@contextmanager
def session(tree: Path, size: tuple[int, int], *, growing: bool = False, busy: bool = False) -> Iterator[Session]:
    """The app of a source tree in a terminal, its configuration open.

    Args:
        tree: The source tree.
        size: Columns and rows.
        growing: Whether a run makes two steps a second meanwhile.
        busy: Whether a process computes without pause meanwhile, at the niceness of a worker.
    """
    others: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        config = make_home(home)
        if growing:
            command = [sys.executable, "-m", "tests.tui.scripted_run", name, "--before", "60", "--total", "2000"]
            others.append(subprocess.Popen([*command, "--id", "20261201-000000-growing"], cwd=ROOT))
            run = Run(home / "runs" / "20261201-000000-growing")
            wait_for(lambda: run.state().state == "training" and run.state().step >= 60, 60, "the run to train")
        if busy:
            spin = "import os\nos.nice(10)\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"
            others.append(subprocess.Popen([sys.executable, "-c", spin]))
        environment = {
            "LOCALTUNE_HOME": name,
            "XDG_CONFIG_HOME": name,
            "PYTHONPATH": str(tree),
            "PYTHONSAFEPATH": "1",
        }
        try:
            with Terminal.app(str(config), size=size, environment=environment) as terminal:
                terminal.wait_for(lambda: "quit" in terminal.text, 60)
                opened = Session(terminal)
                # All panes are loaded once the rows are counted.
                terminal.press("1")
                terminal.wait_for(lambda: "used · 0 dropped" in terminal.text, 60)
                if growing:
                    terminal.press("3")
                    terminal.wait_for(lambda: "/2000" in terminal.text, 60)
                opened.settle(1.0)
                yield opened
                terminal.press("\x11")
                with suppress(AssertionError):
                    terminal.wait_for_end(3)
        finally:
            for other in others:
                other.kill()
                other.wait()
