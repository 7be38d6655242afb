"""Check of TRL on the same rows, beside our own worker."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_checks.models import EIGHT
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand
from core.helper import describe_end
from core.runs.record.events import MemoryEvent
from core.text import one_line

ROWS, SKIPPED = 2, 3
#: Program that runs the peer and leaves the peak of the card.
_MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
import torch
peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
open(sys.argv[1] + ".peak", "w").write(str(peak))
"""


def check_19(stand: Stand) -> Found:
    """Train the same rows with both, with activations kept and recomputed."""
    if find_spec("trl") is None:
        return Found("not applicable", "TRL is not installed: pip install -e '.[test]'.", {})
    steps = 5 if stand.tiny else 10
    rows = stand.rows([stand.length] * ROWS * steps)
    figures: dict[str, Any] = {}
    bench = stand.bench(EIGHT)
    options = {"train.batch_size": ROWS, "train.max_steps": steps}
    run = stand.worker("ours", stand.config(EIGHT, rows, options), bench)
    run.train()
    peaks = [event.peak_bytes or 0 for event in run.events if isinstance(event, MemoryEvent)]
    figures["localtune"] = {
        "tokens_per_second": rate(ROWS * stand.length, [event.t for event in run.steps]),
        "peak_bytes": max(peaks, default=0),
    }
    for name, checkpointing in (("TRL", False), ("TRL, recomputed", True)):
        figures[name] = _trl(stand, rows, steps, checkpointing=checkpointing)
    said = "; ".join(
        f"{name}: {case['failed']}" if "failed" in case else f"{name} {case['tokens_per_second']:,.0f}"
        for name, case in figures.items()
    )
    return Found("measured", f"Tokens a second: {said}.", figures)


def rate(tokens: int, ends: list[float]) -> float:
    """Tokens a second by the ends of steps of so many tokens."""
    seconds = [end - begin for begin, end in zip(ends[SKIPPED - 1 :], ends[SKIPPED:], strict=False)]
    return tokens / max(statistics.median(seconds), 1e-9)


def _trl(stand: Stand, rows: Path, steps: int, *, checkpointing: bool) -> dict[str, Any]:
    place = stand.work / f"trl-{checkpointing}"
    place.mkdir()
    spec = {
        "model": str(stand.model(EIGHT)),
        "rows": str(rows),
        "output": str(place / "out"),
        "adapter": str(place / "adapter"),
        "steps": steps,
        "batch_size": ROWS,
        "learning_rate": 2e-4,
        "warmup": 1,
        "checkpointing": checkpointing,
        "seed": 42,
    }
    path = place / "spec.json"
    path.write_text(json.dumps(spec))
    peer = Path(__file__).resolve().parents[1] / "train_peer.py"
    with (place / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(peer), str(path)],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    if done.returncode:
        lines = [line for line in (place / "log").read_text(errors="replace").splitlines() if "rror" in line]
        return {"failed": one_line(lines[-1], 200) if lines else f"its process {describe_end(done.returncode)}"}
    told = [json.loads(line) for line in Path(f"{path}.steps").read_text().splitlines()]
    return {
        "tokens_per_second": rate(ROWS * stand.length, [entry["t"] for entry in told if "t" in entry]),
        "peak_bytes": int(Path(f"{path}.peak").read_text()),
    }
