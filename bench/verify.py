"""Honest runs, executed again: all of them must come out equal in every byte.

``python bench/verify.py --runs 100`` trains tiny models by recipes that are drawn at random: adapters, whole weights,
dropout, noise on embeddings, packing, preferences, early stopping; a third of the runs have the learning rate and
intervals set while they are on, a third are killed and continued. Each is verified by its chain and by one replay of
all of it or of two intervals. Values go to ``bench/results/verify-DATE.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.audit.job import AuditJob
from core.audit.result import Audit
from core.errors import UserError
from core.runs.client import ControlClient
from core.runs.store import Run
from tests.e2e.test_preference import write_rows as write_pairs
from tests.e2e.workers import PATIENCE, Workers, exit_code, finish, signal_worker, wait_until_step
from tests.forking import Forks
from tests.tiny_model import write_tiny_model

STEPS = 6
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "qlora": {},
    "lora": {"method": {"name": "lora"}},
    "full": {"method": {"name": "full", "dropout": 0.0}},
    "noise": {"method": {"neftune_alpha": 5.0}},
    "packing": {"train": {"packing": True}},
    "preferences": {"train": {"objective": "dpo", "learning_rate": 1e-3}},
    "early stopping": {"eval": {"every_steps": 1, "patience": 2, "min_delta": 5.0}},
}


def recipe(workers: Workers, kind: str, dice: random.Random) -> dict[str, dict[str, Any]]:
    """The sections of a run."""
    sections: dict[str, dict[str, Any]] = {
        "train": {"max_steps": STEPS, "seed": dice.randrange(1000)},
        "eval": {"every_steps": dice.choice((2, 3)), "exact_match": False, "samples": 0},
        "checkpoint": {"every_steps": dice.choice((1, 2, 3)), "keep": dice.choice((2, 9))},
    }
    for name, values in KINDS[kind].items():
        sections[name] = sections.get(name, {}) | values
    if kind == "preferences":
        rows, measured = (
            write_pairs(workers.directory / name, "dpo", count, seed)
            for name, count, seed in (("dpo.jsonl", 24, 1), ("dpo-eval.jsonl", 6, 2))
        )
        sections["data"] = {"train": str(rows), "eval": str(measured)}
    return sections


def disturb(workers: Workers, run: Run, how: str, dice: random.Random) -> None:
    """Set options of a run, or kill it and go on; one that is over by then is left as it is."""
    wait_until_step(run, dice.randint(1, STEPS - 3))
    try:
        if how == "set":
            with ControlClient(run, timeout=PATIENCE) as client:
                rate = dice.choice((1e-3, 3e-4))
                client.request("set", **{"train.learning_rate": rate, "eval.every_steps": 2})
        elif how == "killed":
            signal_worker(run, signal.SIGKILL)
            exit_code(run)
            workers.resume(run)
    except (UserError, ProcessLookupError):
        return  # over, or killed before its first checkpoint


def once(workers: Workers, number: int, dice: random.Random) -> tuple[str, str, Audit | None]:
    """Train and verify; None where the run was killed before its first checkpoint."""
    kind, how = list(KINDS)[number % len(KINDS)], ("calm", "set", "killed")[number % 3]
    run = workers.start(f"run-{number}", **recipe(workers, kind, dice))
    if how != "calm":
        disturb(workers, run, how, dice)
    if exit_code(run) != 0:
        return kind, how, None
    finish(run)
    with workers.environment():
        audit = AuditJob(run, spans=2, seed=number, whole=number % 2 == 0).run()
    if audit.verdict == "verified":
        shutil.rmtree(run.path)
    return kind, how, audit


def main() -> None:
    """Verify so many runs, and write down what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further run after so long")
    args = parser.parse_args()
    began, forks, counts, seconds = time.monotonic(), Forks(), Counter[str](), list[float]()
    spans, failed, ways = 0, list[dict[str, Any]](), Counter[str]()
    number, made = 0, 0
    with tempfile.TemporaryDirectory() as directory, forks.replacing():
        write_tiny_model(Path(directory) / "model")
        workers = Workers(Path(directory), Path(directory) / "model")
        while made < args.runs and time.monotonic() - began < args.minutes * 60:
            kind, how, audit = once(workers, number, random.Random(args.seed * 10_000 + number))
            number += 1
            if audit is None:
                counts["ended before a checkpoint"] += 1
                continue
            made += 1
            counts[audit.verdict] += 1
            ways[f"{kind}, {how}"] += 1
            spans += len(audit.spans)
            seconds.append(audit.seconds)
            if audit.verdict != "verified":
                failed.append({"kind": kind, "how": how, "audit": audit.to_dict()})
            print(f"{number:4}  {kind}, {how}: {audit.verdict} in {audit.seconds:.1f} s", flush=True)
        workers.close()
    forks.close()
    found = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "runs": made,
        "outcomes": dict(counts),
        "ways": dict(sorted(ways.items())),
        "spans": spans,
        "audit_seconds_median": statistics.median(seconds) if seconds else None,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "failed": failed,
    }
    path = ROOT / "bench/results" / f"verify-{found['date']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in found.items() if name != "failed"}))


if __name__ == "__main__":
    main()
