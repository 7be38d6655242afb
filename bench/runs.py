"""The list of runs and the curve of a long one: how long they take, and how much memory.

    python bench/runs.py                       # a thousand runs, and one of a million steps
    python bench/runs.py --runs 100 --steps 100000 --repeats 3 --out figures.json

It makes the runs in a directory of its own: the files of an ended run of 200 steps with evaluations, devices and two
checkpoints, and a record of a million steps. Every figure is a median of processes that take turns, each new, so that
nothing is in memory but what the system keeps of the files. ``cold`` is without the files of what is known of ended
runs, ``warm`` is with them, ``first`` is what the app shows at once, before all facts are read. Memory is the peak of
the process (``ru_maxrss``); processor time tells how much of the seconds was spent waiting for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.config.document import dump_config
from core.config.schema import Config
from core.runs.record.events import (
    CheckpointEvent,
    DataEvent,
    EvalEvent,
    Event,
    FinishedEvent,
    HardwareEvent,
    PhaseEvent,
    StepEvent,
    encode_event,
)
from core.runs.record.state import RunState

#: Steps of each run of the list, and between two evaluations and reports of the devices.
SHORT, EVERY = 200, 20
BEGAN = datetime(2026, 1, 1, 8, 0, 0)

#: What is measured: a name, and the program of a process that prints seconds.
PROGRAMS = {
    "list": """
from core.runs.catalog.rows import RunCatalog
begun = time.perf_counter(), time.process_time()
rows = RunCatalog(is_cached=True).rows()
print(time.perf_counter() - begun[0], time.process_time() - begun[1])
""",
    "first rows": """
from core.runs.catalog.rows import RunCatalog
from tui.bridge import FACTS_SECONDS
begun = time.perf_counter(), time.process_time()
rows = RunCatalog(is_cached=True).rows(FACTS_SECONDS)
print(time.perf_counter() - begun[0], time.process_time() - begun[1])
""",
    "figures": """
from core.runs.catalog.rows import FigureReader
from core.runs.record.store import list_runs
begun = time.perf_counter(), time.process_time()
reader = FigureReader(is_cached=True)
for run in list_runs():
    reader.read(run)
reader.save()
print(time.perf_counter() - begun[0], time.process_time() - begun[1])
""",
    "first curve": """
from core.runs.record.history import read_glimpse
from core.runs.record.store import list_runs
run = next(run for run in list_runs() if "million" in run.id)
begun = time.perf_counter(), time.process_time()
found = read_glimpse(run)
assert found is not None and len(found.loss) > 1000
print(time.perf_counter() - begun[0], time.process_time() - begun[1])
""",
    "whole curve": """
from core.runs.record.history import read_history
from core.runs.record.store import list_runs
run = next(run for run in list_runs() if "million" in run.id)
begun = time.perf_counter(), time.process_time()
assert len(read_history(run).loss) > 1000
print(time.perf_counter() - begun[0], time.process_time() - begun[1])
""",
}


def events_of(steps: int, start: float) -> Iterator[Event]:
    """The record of a run."""
    yield PhaseEvent(t=start, name="importing")
    yield DataEvent(t=start, rows=400, used=400, dropped={}, tokens=90_000, supervised_tokens=30_000, longest=512)
    yield PhaseEvent(t=start + 5, name="training")
    for step in range(1, steps + 1):
        moment = start + 5 + step * 0.7
        loss = 0.4 + 2.0 / (1.0 + 9.0 * step / steps) + 0.05 * ((step * 7919) % 101) / 101
        yield StepEvent(
            t=moment, step=step, epoch=3 * step / steps, loss=loss, lr=2e-4, grad_norm=0.5 + loss / 4, tokens=2048,
            supervised_tokens=700, seconds=0.69, tokens_per_second=2968.1,
        )  # fmt: skip
        if step % EVERY == 0 and steps < 10_000:
            yield EvalEvent(t=moment, step=step, loss=loss + 0.05, perplexity=2.7, seconds=1.2, exact_match=0.6)
        if step % EVERY == 0:
            device = {"index": 0, "kind": "cuda", "name": "NVIDIA GeForce RTX 4090", "temperature_c": 71.0}
            yield HardwareEvent(t=moment, devices=[device], energy_wh=step * 0.02)
    yield CheckpointEvent(t=start + 6 + steps * 0.7, step=steps, path="checkpoints/step", bytes=39_000_000, seconds=1.2)
    yield FinishedEvent(t=start + 7 + steps * 0.7, reason="all steps done", step=steps, adapter="adapter")


def make_run(number: int, steps: int, name: str, record: str = "") -> None:
    """The directory of one ended run."""
    moment = BEGAN + timedelta(minutes=7 * number)
    run = paths.runs_dir() / f"{moment:%Y%m%d-%H%M%S}-{name}"
    run.mkdir()
    config = Config.model_validate(
        {
            "model": {"base": "/models/Qwen2.5-7B-Instruct"},
            "data": {"train": f"/data/tickets-{number % 7}.jsonl", "eval": "/data/held-out.jsonl"},
            "method": {"rank": (8, 16, 32)[number % 3]},
        }
    )
    write_atomic(run / "run.toml", dump_config(config), durable=False)
    updated = moment.timestamp() + steps * 0.7 + 12
    state = RunState(state="finished", step=steps, total_steps=steps, updated=updated, reason="all steps done")
    state.write(run / "state.json")
    with (run / "events.jsonl").open("w", encoding="utf-8") as file:
        if record:
            file.write(record)
        else:
            file.writelines(map(encode_event, events_of(steps, moment.timestamp())))
    for step in (steps // 2, steps):
        checkpoint = run / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        for file_name in ("manifest.json", "adapter_model.safetensors", "optimizer.pt", "rng.pt", "trainer.json"):
            (checkpoint / file_name).write_bytes(b"{}")


def make_home(runs: int, steps: int) -> None:
    """A home with so many runs, and a long one."""
    paths.make_private_dir(paths.runs_dir())
    record = "".join(map(encode_event, events_of(SHORT, BEGAN.timestamp())))
    for number in range(runs):
        make_run(number, SHORT, f"tickets-{number}", record)
    make_run(runs, steps, "million")


@dataclass(frozen=True)
class Measured:
    """Run of a program."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure(program: str) -> Measured:
    """Report of a program, and the peak memory of its process."""
    peak = "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)"
    code = f"import time\n{program}\n{peak}"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return Measured(*map(float, done.stdout.split()))


def forget() -> None:
    """Drop what is known of ended runs."""
    shutil.rmtree(paths.cache_dir(), ignore_errors=True)


def compare(repeats: int, *, whole: bool) -> dict[str, dict[str, float]]:
    """The medians of processes that take turns."""
    turns: dict[str, tuple[Callable[[], None], str]] = {
        "first rows": (forget, PROGRAMS["first rows"]),
        "list, cold": (forget, PROGRAMS["list"]),
        "list, warm": (lambda: None, PROGRAMS["list"]),
        "figures, cold": (forget, PROGRAMS["figures"]),
        "figures, warm": (lambda: None, PROGRAMS["figures"]),
        "first curve": (lambda: None, PROGRAMS["first curve"]),
    }
    if whole:
        turns["whole curve"] = (lambda: None, PROGRAMS["whole curve"])
    found: dict[str, list[Measured]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, (prepare, program) in turns.items():
            prepare()
            found[name].append(last := measure(program))
            print(
                f"{name:<16} {last.seconds:8.3f} s  {last.cpu_seconds:8.3f} s  {last.peak_mb:6.0f} MB", file=sys.stderr
            )
    return {
        name: {
            item.name: round(statistics.median(getattr(turn, item.name) for turn in measured), 4)
            for item in fields(Measured)
        }
        for name, measured in found.items()
    }


def main() -> None:
    """Make the runs, measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--no-whole", action="store_true", help="without reading the whole long record, which takes a while"
    )
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="localtune-bench-") as home:
        os.environ["LOCALTUNE_HOME"] = home
        begun = time.monotonic()
        make_home(args.runs, args.steps)
        print(f"made in {time.monotonic() - begun:.0f} s", file=sys.stderr)
        figures = compare(args.repeats, whole=not args.no_whole)
    result = {
        "runs": args.runs,
        "steps": args.steps,
        "repeats": args.repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "medians": figures,
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
