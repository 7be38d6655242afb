"""How fast training is while other processes take the cores.

``python bench/busy.py`` trains the starter model on the sample, and meanwhile starts and ends processes that do
nothing but count: none, one and two of them, at nice 0 and 15. It prints the tokens a second of each phase, and the
share of the quiet one. ``--set "GOMP_SPINCOUNT=1000"`` adds a training with other environment variables, so that
settings are compared in one run. Values go to ``bench/results/busy-DATE.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Number of busy processes and their niceness, a phase each; quiet first and last.
PHASES = "0@0,1@0,2@0,1@15,2@15,0@0"
BURNER = "import os, sys\nos.nice(int(sys.argv[1]))\nwhile True: pass"


@dataclass(frozen=True)
class Phase:
    """A phase of one training."""

    burners: int
    niceness: int
    tokens_per_second: float


@contextlib.contextmanager
def busy(count: int, niceness: int) -> Iterator[None]:
    """Processes that take a core each."""
    burners = [subprocess.Popen([sys.executable, "-c", BURNER, str(niceness)]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def steps(run: Path) -> list[tuple[float, float, int]]:
    """Time, seconds and tokens of each optimizer step so far."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["type"] == "step":
                found.append((event["t"], event["seconds"], event["tokens"]))
    return found


def measure(variables: dict[str, str], seconds: float, phases: Sequence[tuple[int, int]]) -> list[Phase]:
    """Train with environment variables, and measure phase after phase."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        home.mkdir()
        models = Path(os.environ.get("LOCALTUNE_HOME", Path.home() / ".local/share/localtune")) / "models"
        (home / "models").symlink_to(models)
        environment = {**os.environ, "LOCALTUNE_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", "tui", "train", str(ROOT / "sample_data/tickets.toml")]
        settings = ("train.max_steps=100000", "checkpoint.every_steps=100000", "eval.baseline=false")
        for setting in settings:
            command += ["--set", setting]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                return _phases(home, process, seconds, phases)
            finally:
                _end(home, process)


def _end(home: Path, process: subprocess.Popen[bytes]) -> None:
    for state in home.glob("runs/*/state.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(state.read_text(encoding="utf-8"))["pid"], 9)
    process.kill()


def _phases(
    home: Path, process: subprocess.Popen[bytes], seconds: float, phases: Sequence[tuple[int, int]]
) -> list[Phase]:
    found: list[Phase] = []
    while not (runs := list(home.glob("runs/*"))) or len(steps(runs[0])) < 3:
        if process.poll() is not None:
            raise SystemExit("The training ended before it began; try it with localtune-tui train.")
        time.sleep(0.1)
    for burners, niceness in phases:
        with busy(burners, niceness):
            began = time.time()
            # A slow phase is given time for three whole steps at least, within reason.
            while time.time() < began + seconds or len(_within(runs[0], began)) < 3:
                if time.time() > began + 3 * seconds:
                    break
                time.sleep(0.2)
            rates = [tokens / duration for _, duration, tokens in _within(runs[0], began)]
        found.append(Phase(burners, niceness, statistics.median(rates) if rates else 0.0))
    return found


def _within(run: Path, began: float) -> list[tuple[float, float, int]]:
    return [step for step in steps(run) if step[0] - step[1] >= began]


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE[,…]", help="one more training")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each phase")
    parser.add_argument("--phases", default=PHASES, help="such as 0@0,1@15: busy processes and their niceness")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="store_true", help="leave out the training as it comes")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    arguments = parser.parse_args()
    settings = ([] if arguments.only else [""]) + arguments.set
    phases = [(int(count), int(nice)) for count, nice in (part.split("@") for part in arguments.phases.split(","))]
    results: dict[str, list[list[Phase]]] = {setting: [] for setting in settings}
    for _ in range(arguments.rounds):
        for setting in settings:
            variables = dict(part.split("=", 1) for part in setting.split(",")) if setting else {}
            results[setting].append(measure(variables, arguments.seconds, phases))
    heads = "  ".join(f"{count}@{niceness}".rjust(11) for count, niceness in phases)
    print(f"{'busy processes @ niceness':<44}{heads}")
    for setting, rounds in results.items():
        taken = [[phase.tokens_per_second for phase in one] for one in rounds]
        rates = [statistics.median(column) for column in zip(*taken, strict=True)]
        cells = "  ".join(f"{rate:6.1f} {rate / rates[0]:4.2f}" for rate in rates)
        print(f"{setting or 'as it comes':<44}{cells}", flush=True)
    kept = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "phases": phases,
        "tokens_per_second": {
            setting or "as it comes": [[phase.tokens_per_second for phase in taken] for taken in rounds]
            for setting, rounds in results.items()
        },
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    name = f"busy-{datetime.date.today().isoformat()}.json"
    (arguments.results / name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
