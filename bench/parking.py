"""A run that is parked again and again, against one that nothing disturbs.

``python bench/parking.py --times 20`` trains a tiny model with dropout and evaluations, parks the run after steps that
are chosen at random, waits until nothing of it is left in memory, and lets it go on; then the final adapters and the
losses are compared, byte for byte. It prints the resident memory in training and while parked, and how long giving the
device back and taking it again take. Values go to ``bench/results/parking-DATE.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.hardware.cpu import process_rss
from core.runs.control.client import ControlClient
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.e2e.workers import PATIENCE, Workers, adapter_bytes, finish, pid_of, steps, wait_until_step
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_for


@dataclass
class Parked:
    """Cost of parking: megabytes and seconds."""

    training_mb: list[float] = field(default_factory=list)
    parked_mb: list[float] = field(default_factory=list)
    leaving_s: list[float] = field(default_factory=list)
    returning_s: list[float] = field(default_factory=list)

    def once(self, run: Run) -> None:
        """Park a run, and let it go on."""
        pid = pid_of(run)
        self.training_mb.append((process_rss(pid) or 0) / 1e6)
        began = time.monotonic()
        request(run, "park")
        wait_for(lambda: is_parked(run.state()), PATIENCE, "the run to be parked")
        self.leaving_s.append(time.monotonic() - began)
        self.parked_mb.append((process_rss(pid) or 0) / 1e6)
        step, began = run.state().step, time.monotonic()
        request(run, "resume")
        wait_for(lambda: run.state().step > step or run.state().is_over, PATIENCE, "the next step")
        self.returning_s.append(time.monotonic() - began)


def request(run: Run, command: str) -> None:
    """Send a command."""
    with ControlClient(run, timeout=PATIENCE) as client:
        client.request(command)


def is_parked(state: RunState) -> bool:
    """True if a run waits without its device, and takes commands."""
    return bool(state.parked) and state.socket is not None


def main() -> int:
    """Compare a run that is parked with one that is not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="how often the run is parked")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of the run")
    parser.add_argument("--seed", type=int, default=None, help="of the steps at which it is parked")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    moments = sorted(random.Random(seed).sample(range(1, args.steps - 1), args.times))
    found = Parked()
    with tempfile.TemporaryDirectory() as place:
        workers = Workers(Path(place), write_tiny_model(Path(place) / "model"))
        try:
            recipe = {"train": {"max_steps": args.steps}}
            undisturbed = workers.start("undisturbed", **recipe)
            finish(undisturbed)
            run = workers.start("parked", **recipe)
            for moment in moments:
                wait_until_step(run, moment)
                found.once(run)
            finish(run)
            same_bytes = adapter_bytes(run) == adapter_bytes(undisturbed)
            same_losses = [event.loss for event in steps(run)] == [event.loss for event in steps(undisturbed)]
        finally:
            workers.close()
    result = {
        "machine": platform.platform(),
        "times": args.times,
        "seed": seed,
        "adapter_equal": same_bytes,
        "losses_equal": same_losses,
        **{name: round(statistics.median(values), 2) for name, values in vars(found).items()},
    }
    path = ROOT / "bench" / "results" / f"parking-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, value in result.items():
        print(f"{name:14} {value}")
    return 0 if same_bytes and same_losses else 1


if __name__ == "__main__":
    sys.exit(main())
