"""Tokens/s of a run of several processes against one of one, per strategy: ``python bench/scale.py``.

The runs take turns, so that what else the machine does hits all alike. Each process has a core of its own where there
are as many; on cards each has a card. Steps are counted from the third on, as the first ones warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sample_data
from core.runs.record.events import StepEvent
from core.runs.record.state import EventTail

#: Steps that are not counted.
WARM_UP = 2


def measure(arguments: argparse.Namespace, home: Path, strategy: str, processes: int) -> float:
    """Train for some steps; the median of the tokens/s of its steps.

    Args:
        arguments: Of the command line.
        home: The home of the run.
        strategy: As ``distributed.strategy``.
        processes: How many.
    """
    options = {
        "model.base": arguments.model,
        "eval.baseline": "false",
        "eval.exact_match": "false",
        "eval.samples": "1",
        "eval.max_rows": "2",
        "train.max_steps": str(arguments.steps + WARM_UP),
        "train.batch_size": str(arguments.batch_size),
        "hardware.device": arguments.device,
        "distributed.strategy": strategy if processes > 1 else "auto",
    }
    changed = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "tui", "train", str(arguments.config), *changed, "--processes", str(processes)]
    environment = {**os.environ, "LOCALTUNE_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{strategy}, {processes} processes: {done.stdout}{done.stderr}")
    summary = json.loads(done.stdout)
    if summary["processes"] != processes:
        raise SystemExit(f"{summary['processes']} processes instead of {processes}")
    events = EventTail(home / "runs" / summary["run"] / "events.jsonl").read_all()
    steps = [event for event in events if isinstance(event, StepEvent)][WARM_UP:]
    return statistics.median(step.tokens_per_second for step in steps)


def main() -> None:
    """Measure, print a table and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=sample_data.path("tickets.toml"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--strategies", nargs="+", default=["replicate"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", type=Path, help="directory of prepared models, so that none is made anew")
    arguments = parser.parse_args()
    cases = [("replicate", 1), *((strategy, arguments.processes) for strategy in arguments.strategies)]
    found: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        home.mkdir(mode=0o700)
        if arguments.models is not None:
            (home / "models").symlink_to(arguments.models.absolute())
        for _ in range(arguments.rounds):
            for case in cases:
                found[case].append(measure(arguments, home, *case))
                print(*case, f"{found[case][-1]:.0f} tokens/s", file=sys.stderr, flush=True)
    report(arguments, found)


def report(arguments: argparse.Namespace, found: dict[tuple[str, int], list[float]]) -> None:
    """Print the medians and write all of it."""
    one = statistics.median(found["replicate", 1])
    rows: list[dict[str, Any]] = []
    print("| strategy | processes | tokens/s | times one |\n|---|---:|---:|---:|")
    for (strategy, processes), values in found.items():
        median = statistics.median(values)
        rows.append({"strategy": strategy, "processes": processes, "median": median, "all": values})
        print(f"| {strategy if processes > 1 else 'one process'} | {processes} | {median:.0f} | {median / one:.2f} |")
    about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    options = {name: value.name if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    path = ROOT / "bench" / "results" / f"scale-{date.today().isoformat()}.json"
    path.write_text(json.dumps({**about, "options": options, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
