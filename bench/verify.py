"""Honest runs, executed again: all of them must come out equal in every byte.

``python bench/verify.py --runs 100`` trains tiny models by recipes that are drawn at random: one of eleven kinds
(adapters, whole weights, some layers, noise on embeddings, packing, three objectives of preference, early stopping,
rows that are cut) with some options besides. A fifth of the runs each is left alone, has options set and perhaps a
checkpoint asked for, is killed, is stopped, is parked; what was ended is continued. Each is verified by its chain and
by one replay of all of it or of two intervals. One that fails, or does not pass, is told with its audit. Values go to
``bench/results/verify-DATE.json``.

With ``--processes 2`` each run has so many processes, by replicate and fsdp2 in turn, as far as a recipe goes with
these; values go to ``bench/results/verify-processes-DATE.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from core.audit.job import audit_job
from core.audit.result import Audit
from core.config.rules.check import check_rules
from core.errors import UserError
from core.launch import launcher
from core.runs.control.client import ControlClient
from core.runs.record.events import ControlEvent, FinishedEvent, PhaseEvent, StepEvent
from core.runs.record.store import Run, complete_checkpoints
from tests.e2e.test_preference import write_rows as write_pairs
from tests.e2e.workers import (
    PATIENCE,
    Workers,
    events,
    exit_code,
    log,
    only,
    signal_worker,
)
from tests.forking import FAULT_VARIABLE, Forks
from tests.tiny_model import write_tiny_model
from tests.waiting import wait_for

Sections = dict[str, dict[str, Any]]

STEPS = 6
#: Exit code of a run that was stopped.
STOPPED = 3
KINDS: dict[str, Sections] = {
    "qlora": {},
    "lora": {"method": {"name": "lora"}},
    "full": {"method": {"name": "full", "dropout": 0.0}},
    "freeze": {"method": {"name": "freeze", "trainable_layers": 1, "dropout": 0.0}},
    "noise": {"method": {"neftune_alpha": 5.0}},
    "packing": {"train": {"packing": True}},
    "dpo": {"train": {"objective": "dpo", "learning_rate": 1e-3}},
    "kto": {"train": {"objective": "kto", "learning_rate": 1e-3}},
    "orpo": {"train": {"objective": "orpo", "learning_rate": 1e-3}},
    "early stopping": {"eval": {"every_steps": 1, "patience": 2, "min_delta": 5.0}},
    "rows that are cut": {
        "train": {"max_length": 64, "batch_size": 6},
        "data": {"overlong": "truncate", "allow": ["nothing_supervised", "stop_untrained"]},
    },
}
#: Options that are drawn beside a kind, each for one run in four; those that do not go with it are left out.
OPTIONS: tuple[tuple[str, str, Any], ...] = (
    ("method", "dora", True),
    ("method", "rslora", True),
    ("method", "loraplus_ratio", 8.0),
    ("method", "init", "pissa"),
    ("train", "optimizer", "adafactor"),
    ("train", "scheduler", "linear"),
    ("train", "weight_decay", 0.1),
    ("train", "micro_batch_size", 2),
    ("train", "precision", "bf16"),
    ("memory", "gradient_checkpointing", "on"),
    ("eval", "baseline", True),
    ("eval", "samples", 1),
    ("checkpoint", "final", "best"),
)
#: Variables of a run whose processes are forked, where it has several.
FORKED = {FAULT_VARIABLE: "fork_ranks:0"}
WAYS = ("calm", "set", "killed", "stopped", "parked")


@dataclass
class Drawn:
    """A recipe."""

    kind: str
    way: str
    sections: Sections
    options: list[str]
    """Random parameters of the disturbance."""


@dataclass
class Found:
    """Results of all runs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    options: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """Findings in the records of the runs, and the replayed part."""
    seconds: list[float] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, drawn: Drawn, run: Run, audit: Audit | None) -> str:
        """Count a run; what came of it."""
        outcome = audit.verdict if audit is not None else "failed"
        self.outcomes[outcome] += 1
        self.kinds[drawn.kind] += 1
        self.ways[drawn.way] += 1
        self.options.update(drawn.options)
        self.seen.update(shown(run))
        if audit is not None:
            self.seconds.append(audit.seconds)
            self.seen["intervals executed again"] += sum(span.outcome == "equal" for span in audit.spans)
            self.seen["steps executed again"] += sum(span.end - span.begin for span in audit.spans)
            self.seen["links of chains"] += audit.chain.links
        if outcome != "verified":
            said = audit.to_dict() if audit is not None else {"log": log(run)[-2000:], "state": run.state().reason}
            self.failed.append({"kind": drawn.kind, "way": drawn.way, "sections": drawn.sections, **said})
        return outcome


def shown(run: Run) -> Counter[str]:
    """Findings in the record of a run; a disturbance that came too late does not count."""
    told = events(run)
    done = [event.step for event in only(StepEvent, told)]
    commands = Counter(f"{event.command} carried out" for event in only(ControlEvent, told))
    endings = [event for event in told if type(event) is FinishedEvent]
    return commands + Counter(
        {
            "starts": sum(event.name == "importing" for event in only(PhaseEvent, told)),
            "steps": len(done),
            "steps done twice": len(done) - len(set(done)),
            "ended early": sum(event.step < STEPS for event in endings),
        }
    )


def draw(workers: Workers, number: int, dice: random.Random, processes: int) -> Drawn:
    """The recipe of a run."""
    kind, way = list(KINDS)[number % len(KINDS)], WAYS[number % len(WAYS)]
    sections: Sections = {
        "train": {"max_steps": STEPS, "seed": dice.randrange(1000)},
        "eval": {"every_steps": dice.choice((2, 3)), "exact_match": False, "samples": 0},
        "checkpoint": {"every_steps": dice.choice((1, 2, 3)), "keep": dice.choice((2, 9))},
        "chat": {"max_new_tokens": 3},
    }
    for name, values in KINDS[kind].items():
        sections[name] = sections.get(name, {}) | values
    if kind in ("dpo", "kto", "orpo"):
        rows, measured = (
            write_pairs(workers.directory / f"{kind}-{count}.jsonl", kind, count, seed)
            for count, seed in ((48, 1), (6, 2))
        )
        sections["data"] = {"train": str(rows), "eval": str(measured)}
    options = []
    if processes > 1:
        sections |= {"distributed": {"processes": processes, "strategy": "fsdp2"}}
        if number % 2 or not fits(workers, sections):
            sections |= {"distributed": {"processes": processes, "strategy": "replicate"}}
        options.append(f"distributed.strategy = {sections['distributed']['strategy']}")
    for section, name, value in OPTIONS:
        if dice.random() < 0.25 and fits(workers, changed := with_option(sections, section, name, value)):
            sections = changed
            options.append(f"{section}.{name} = {value}")
    return Drawn(kind, way, sections, options)


def with_option(sections: Sections, section: str, name: str, value: Any) -> Sections:
    """Sections with one more option."""
    return sections | {section: {name: value} | sections.get(section, {})}


def fits(workers: Workers, sections: Sections) -> bool:
    """True if the options go together."""
    config = workers.config(**sections)
    return not any(remark.level == "error" for remark in check_rules(config))


def reach(run: Run, step: int) -> None:
    """Wait for a step of a run, or for its end."""
    wait_for(lambda: (state := run.state()).is_over or state.step >= step, PATIENCE, f"step {step}", interval=0.002)


def hold(run: Run, client: ControlClient, dice: random.Random) -> None:
    """Have a run wait between two of its steps, or before the first.

    Raises:
        UserError: If it is over.
    """
    wait_for(lambda: run.state().is_over or only(PhaseEvent, run), PATIENCE, f"{run.id} to listen")
    client.request("pause")
    if dice.random() < 0.8:
        client.request("resume")
        reach(run, dice.randint(1, STEPS - 2))
        client.request("pause")


def set_options(run: Run, client: ControlClient, dice: random.Random) -> None:
    """Set the learning rate and an interval, and ask for a checkpoint or not."""
    client.request("set", **{"train.learning_rate": dice.choice((1e-3, 3e-4)), "eval.every_steps": 2})
    if run.state().step and dice.random() < 0.5:
        client.request("checkpoint")
    client.request("resume")


def kill_it(run: Run, client: ControlClient, dice: random.Random) -> None:
    """Kill a run some milliseconds after it has gone on."""
    client.request("resume")
    reach(run, 2)
    time.sleep(dice.random() * 0.1)
    signal_worker(run, signal.SIGKILL)


def stop_it(run: Run, *_: Any) -> None:
    """Stop a run, which writes a checkpoint first."""
    signal_worker(run, signal.SIGTERM)


def park_it(run: Run, client: ControlClient, *_: Any) -> None:
    """Have a run give its device back, and go on."""
    client.request("park")
    wait_for(lambda: (state := run.state()).parked and state.socket, PATIENCE, f"{run.id} to be parked")
    client.request("resume")


DISTURB: dict[str, Callable[[Run, ControlClient, random.Random], None]] = {
    "set": set_options,
    "killed": kill_it,
    "stopped": stop_it,
    "parked": park_it,
}


def train(workers: Workers, drawn: Drawn, name: str, dice: random.Random) -> Run:
    """A run of a recipe, which was disturbed. One that was over before is left as it is; one that was ended
    before its first checkpoint is begun anew."""
    run = workers.start(name, FORKED, **drawn.sections)
    if drawn.way in DISTURB:
        with contextlib.suppress(UserError, ProcessLookupError), ControlClient(run, timeout=PATIENCE) as client:
            hold(run, client, dice)
            DISTURB[drawn.way](run, client, dice)
        if exit_code(run) in (STOPPED, -signal.SIGKILL):
            if not complete_checkpoints(run):
                return workers.start(name, FORKED, **drawn.sections)
            workers.resume(run, FORKED)
    return run


def verify(workers: Workers, run: Run, *, seed: int, whole: bool) -> Audit | None:
    """The audit of a run; None where the run has failed."""
    if exit_code(run) != 0:
        return None
    with workers.environment():
        return audit_job(run, spans=2, seed=seed, whole=whole).run()


def written(found: Found, seconds: float) -> dict[str, Any]:
    """The values of the result file."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "runs": found.outcomes.total(),
        "outcomes": dict(found.outcomes),
        "kinds": dict(found.kinds),
        "ways": dict(found.ways),
        "options": dict(sorted(found.options.items())),
        "seen": dict(sorted(found.seen.items())),
        "audit_seconds_median": statistics.median(found.seconds) if found.seconds else None,
        "minutes": round(seconds / 60, 1),
        "failed": found.failed,
    }


@contextlib.contextmanager
def working_directory(kept: Path | None) -> Iterator[Path]:
    """A directory for model, rows and runs; one that was not named is removed."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def main() -> None:
    """Verify so many runs, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run, to repeat one")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further run after so long")
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--keep", type=Path, help="work in this directory, and leave the runs there")
    args = parser.parse_args()
    began, forks, found = time.monotonic(), Forks(), Found()
    name = "verify" if args.processes == 1 else "verify-processes"
    path = ROOT / "bench/results" / f"{name}-{datetime.date.today().isoformat()}.json"
    with working_directory(args.keep) as directory, forks.replacing():
        write_tiny_model(directory / "model")
        workers = Workers(directory, directory / "model")
        for number in range(args.first, args.first + args.runs):
            if time.monotonic() - began > args.minutes * 60:
                break
            dice = random.Random(args.seed * 10_000 + number)
            drawn = draw(workers, number, dice, args.processes)
            run = train(workers, drawn, f"run-{number}", dice)
            audit = verify(workers, run, seed=number, whole=dice.random() < 0.6)
            outcome = found.add(drawn, run, audit)
            print(
                f"{number:4}  {drawn.kind}, {drawn.way}, {', '.join(drawn.options) or 'plain'}: {outcome}", flush=True
            )
            # After each, as it may take hours.
            values = written(found, time.monotonic() - began)
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            launcher.reap()
        workers.close()
    forks.close()
    print(json.dumps({name: value for name, value in values.items() if name != "failed"}))


if __name__ == "__main__":
    main()
