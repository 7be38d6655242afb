"""Mutated files for every reader of what comes from outside: ``python bench/fuzz.py --minutes 10``.

Each reader (``tests/fuzzing.py``) is called as the app and the commands call it, with mutations of whole files. The
table says how many were read and how many refused in a sentence, how many of these reached a bound of the sandbox, the
slowest, and by how much the calling process grew. Anything else is a failure: it is kept in a file, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.core.worker.model.gguf_files import write_gguf
from tests.fuzzing import Reader, mutate, outcome, readers
from tests.tiny_model import write_tiny_model


@dataclass
class Tally:
    """The results of mutations of one kind of file."""

    name: str
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    """Kind of failure and the file that triggers it."""


def fuzz(reader: Reader, seconds: float, seed: int, directory: Path, kept: Path) -> Tally:
    """Read mutations of a reader's files for a while."""
    rng, tally = random.Random(f"{reader.name} {seed}"), Tally(reader.name)
    path = directory / f"fuzzed{reader.suffix}"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng.choice(reader.seeds), rng)
        began = time.monotonic()
        try:
            what = outcome(reader, data, path)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = "failed"
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {place.name} of {Path(place.filename).name}: {error}"[:200]
            if kind not in tally.failures:
                file = kept / f"{reader.name.replace(' ', '-')}-{len(tally.failures)}{reader.suffix}"
                file.write_bytes(data)
                tally.failures[kind] = str(file)
        tally.tried += 1
        tally.outcomes[what] += 1
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
    return tally


def main() -> int:
    """Fuzz; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all readers together (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="other mutations (default: 1)")
    parser.add_argument("--only", help="readers whose name holds this text")
    parser.add_argument("--out", type=Path, help="file for the figures (default: one of bench/results)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        directory = Path(place)
        os.environ["LOCALTUNE_HOME"] = str(directory / "home")
        kept = Path(tempfile.gettempdir()) / "fuzz-failures"
        kept.mkdir(exist_ok=True)
        model = write_tiny_model(directory / "tiny")
        found = readers(directory, model, write_gguf(model, directory / "tiny.gguf"))
        found = [reader for reader in found if not arguments.only or arguments.only in reader.name]
        tallies, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for reader in found:
            tally = fuzz(reader, arguments.minutes * 60 / len(found), arguments.seed, directory, kept)
            tallies.append(tally)
            bounds = tally.outcomes["SandboxError"]
            refused = tally.tried - tally.outcomes["read"] - tally.outcomes["failed"]
            print(
                f"{tally.name:<22} {tally.tried:>7} tried  {tally.outcomes['read']:>7} read  {refused:>7} refused"
                f"  {bounds:>4} at a bound  slowest {tally.slowest_s:5.2f} s  {tally.outcomes['failed']:>3} failed",
                flush=True,
            )
            for kind, file in tally.failures.items():
                print(f"    {kind}\n    {file}")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    total, failed = sum(tally.tried for tally in tallies), sum(tally.outcomes["failed"] for tally in tallies)
    print(f"{total} mutations, {failed} failures, the process that asked grew by {growth} MB")
    out = arguments.out or ROOT / "bench" / "results" / f"fuzz-{datetime.now():%Y-%m-%d}.json"
    result = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "growth_mb": growth,
        "readers": [{**vars(tally), "failures": list(tally.failures)} for tally in tallies],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
