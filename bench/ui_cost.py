"""Cost of the app for a run: tokens a second with it at its Train pane and without, in turns, in one training.

``python bench/ui_cost.py`` trains the starter model on the sample. The app is started in a pseudo-terminal of 200×50,
shows the run, is read for a while and ended; then the run goes on alone for as long. Besides the trained tokens a
second of wall time it gives the processor time of the app and the bytes that it writes; and both once more for each
pane and the queue while nothing moves: before there is a run, while it is paused, and when it is over. Pairs of
neighboring turns are compared, so that what else the machine does in a minute is in both. Values go to
``bench/results/ui-cost-DATE.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.app_session import Session
from core.config.document import load_config
from core.config.schema import Config
from core.launch.launcher import start_run, terminate
from core.runs.control.client import ControlClient
from core.runs.record.store import Run
from tests.tui.terminal import Terminal
from tests.waiting import wait_for

SIZE = (200, 50)
#: Nothing but steps, for as long as it takes.
_ONLY_STEPS = (
    "train.max_steps=100000",
    "eval.every_steps=100000",
    "eval.baseline=false",
    "checkpoint.every_steps=100000",
)
#: The panes and the queue, by the keys that lead there from anywhere.
_PLACES = {"data": "1", "config": "2", "train": "3", "chat": "4", "runs": "5", "queue": "Q"}
#: Seconds without output after which a pane counts as painted.
_QUIET = 1.0
#: Seconds that the app has to load all panes and to read the run before a turn begins; its start takes a core, and the
#: worker's threads spin for less until that is ten seconds past (core/worker/process/openmp.py).
_SETTLING = 20.0
#: Seconds for the worker to get to its first steps, or the app to show them.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Turn:
    """A stretch of training."""

    watched: bool
    tokens_per_second: float
    """Trained tokens over wall time."""
    steps: int
    load: float
    """Load average of the machine at the end: of one that is busy with other things, nothing else can be read."""
    app: Watching | None = None


@dataclass(frozen=True)
class Watching:
    """Cost of the app during the observation."""

    core_share: float
    """Processor time over wall time."""
    bytes_per_second: float


def steps(run: Run) -> list[tuple[float, int]]:
    """Time and tokens of each optimizer step so far."""
    events = (json.loads(line) for line in run.events_path.read_bytes().splitlines() if b'"step"' in line)
    return [(event["t"], event["tokens"]) for event in events if event["type"] == "step"]


def look(app: Session, seconds: float) -> Watching:
    """Read what the app writes, as a terminal does, and nothing else."""
    begun, cpu, written = time.monotonic(), app.cpu_seconds, len(app.terminal.output)
    while (left := begun + seconds - time.monotonic()) > 0:
        app.terminal.pump(left)
    wall = time.monotonic() - begun
    return Watching((app.cpu_seconds - cpu) / wall, (len(app.terminal.output) - written) / wall)


def look_around(app: Session, seconds: float) -> dict[str, Watching]:
    """Look at each pane, and at the queue, when all of it has been painted."""
    found = {}
    for name, key in _PLACES.items():
        app.terminal.press(key)
        app.settle(_QUIET)
        found[name] = look(app, seconds)
    return found


def turn(run: Run, seconds: float, app: Session | None) -> Turn:
    """A turn, with the app or without."""
    begun, watching = len(steps(run)), None
    if app is None:
        time.sleep(seconds)
    else:
        watching = look(app, seconds)
    done = steps(run)[begun:]
    if len(done) < 3:
        raise SystemExit(f"{len(done)} steps in {seconds:g} s are too few to compare; give more --seconds.")
    rate = sum(tokens for _, tokens in done[1:]) / (done[-1][0] - done[0][0])
    return Turn(app is not None, rate, len(done), os.getloadavg()[0], watching)


@contextlib.contextmanager
def opened(run: Run | None = None) -> Iterator[Session]:
    """The app in a terminal, showing a run where there is one."""
    arguments, sign = ("--run", run.id) if run is not None else (), "tok/s" if run is not None else "^p palette"
    with Terminal.app(*arguments, size=SIZE, environment={"LOCALTUNE_HOME": os.environ["LOCALTUNE_HOME"]}) as made:
        made.wait_for_text(sign, _PATIENCE)
        app = Session(made)
        look(app, _SETTLING)
        yield app
        made.press("\x1b")
        app.settle(_QUIET)
        made.press("\x11")
        # Beside a live run it asks.
        app.settle(_QUIET)
        made.press("l")
        with contextlib.suppress(AssertionError):
            made.wait_for_end(3)


def measure(config: Config, rounds: int, seconds: float) -> tuple[list[Turn], dict[str, dict[str, Watching]]]:
    """Train, and measure in turns; and the app while nothing moves: without a run, beside a paused and an ended one."""
    idle = {}
    with opened() as app:
        idle["no run"] = look_around(app, seconds)
    run = start_run(config, "ui-cost")
    try:
        wait_for(lambda: run.state().step >= 3 or run.state().is_over, _PATIENCE, "the first steps")
        if run.state().is_over:
            raise SystemExit(f"The training ended before it began: {run.state().reason}")
        turns = []
        for _ in range(rounds):
            turns.append(turn(run, seconds, None))
            with opened(run) as app:
                turns.append(turn(run, seconds, app))
        ControlClient(run).request("pause")
        wait_for(lambda: run.state().state == "paused", _PATIENCE, "the pause")
        with opened(run) as app:
            idle["paused"] = look_around(app, seconds)
    finally:
        terminate(run, force=True)
    with opened(run) as app:
        idle["ended"] = look_around(app, seconds)
    return turns, idle


def compared(turns: list[Turn]) -> float:
    """Tokens a second with the app over those without: the median of the pairs."""
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return statistics.median(watched.tokens_per_second / alone.tokens_per_second for alone, watched in pairs)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each turn")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the sample's configuration")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    options = parser.parse_args()
    models = Path(os.environ.get("LOCALTUNE_HOME", Path.home() / ".local/share/localtune")) / "models"
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "models").symlink_to(models)
        os.environ["LOCALTUNE_HOME"] = directory
        config = load_config(ROOT / "sample_data" / "tickets.toml", (*_ONLY_STEPS, *options.set))
        turns, idle = measure(config, options.rounds, options.seconds)
    looked = [one.app for one in turns if one.app is not None]
    kept = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "tokens_per_second_watched_over_alone": round(compared(turns), 4),
        "core_share": round(statistics.median(one.core_share for one in looked), 4),
        "bytes_per_second": round(statistics.median(one.bytes_per_second for one in looked), 1),
        "idle": {state: {name: asdict(one) for name, one in places.items()} for state, places in idle.items()},
        "turns": [asdict(one) for one in turns],
    }
    print(json.dumps({name: value for name, value in kept.items() if name != "turns"}, indent=1))
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"ui-cost-{datetime.date.today().isoformat()}.json"
    (options.results / name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
