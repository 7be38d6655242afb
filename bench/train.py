"""How fast training is, what it takes and what comes of it, beside TRL's SFTTrainer and LLaMA-Factory.

``python bench/train.py`` trains the starter model (4-bit base, LoRA of rank 16 on every linear layer, bf16, AdamW) on
the same rows in the same order, turn by turn, and prints medians: tokens of the rows a second over steps as a clock on
the wall sees them, the process's peak of resident memory, the time from launch to the end of the first step, and the
held-out loss of the adapters, measured by one program for all. Values of every round go to
``bench/results/train-DATE.json``. LLaMA-Factory needs an environment of its own: name its Python with
``--llama-factory``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.train_rows import ROOT, SEED, Case, full_rows, tickets, write_jsonl
from core import paths
from core.worker.optim.optim import warmup_steps

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "triton")
WARMUP = 0.05
#: Steps at the beginning that are not counted: caches fill, and memory is allocated.
SKIPPED = 2
#: Programs that are measured in the first round only: slower peers, whose distance is not a matter of noise.
ONCE = ("TRL, as it comes", "LLaMA-Factory")
#: Program that measures adapters: the model they belong to, the rows, and the directories are its arguments.
MEASURE = """
import json, sys
from pathlib import Path
from core.worker.process import environment
environment.prepare()
import numpy as np, torch
from core.worker.data.batches import collate, split_window
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import load_model
from core.worker.data.encode import TokenizedRow
rows = [json.loads(line) for line in open(sys.argv[2])]
rows = [TokenizedRow(np.array(r["input_ids"], np.int32), np.array([l != -100 for l in r["labels"]])) for r in rows]
loaded = load_model(Path(sys.argv[1]), method="qlora", precision="auto", device="auto", adapter=Path(sys.argv[3]))
loaded.model.eval()
loss, total = SupervisedLoss(loaded.model), 0.0
with torch.no_grad(), torch.autocast(loaded.device.type, dtype=loaded.dtype):
    for batch in split_window(range(len(rows)), list(map(len, rows)), 2048):
        total += float(loss(*collate([rows[place] for place in batch], 0, loaded.device)))
print(total / sum(int(row.supervised[1:].sum()) for row in rows))
"""


@dataclass(frozen=True)
class Measured:
    """The measurements of one training."""

    tokens_per_second: float
    peak_rss: int
    """Peak of resident memory in bytes."""
    first_step: float
    """Seconds from launch to the end of the first step."""
    loss: float
    """Held-out loss, after the last step."""


class Failed(Exception):  # noqa: N818 - it is no error of this program
    """A training that did not finish; the text is its last output."""


Training = Callable[[Case, Path, Path, int], Measured]


def environment() -> dict[str, str]:
    """The environment of all processes."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def measured(
    case: Case, launched: float, ends: list[float], peak: int, model: Path, adapter: Path, to: Path
) -> Measured:
    """The measurements of a training.

    Args:
        case: The comparison.
        launched: Time of the start, in Unix seconds.
        ends: End of each step, in Unix seconds.
        peak: Peak of resident memory, in bytes.
        model: The base model.
        adapter: The trained adapter.
        to: A directory for the held-out rows.
    """
    rates = [
        tokens / (end - begin)
        for tokens, begin, end in zip(case.tokens[SKIPPED:], ends[SKIPPED - 1 :], ends[SKIPPED:], strict=False)
    ]
    write_jsonl(case.held_out, to / "held_out.jsonl")
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), str(to / "held_out.jsonl"), str(adapter)],
        env=environment(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Measured(statistics.median(rates), peak, ends[0] - launched, float(told.stdout.split()[-1]))


def wait(arguments: list[str], log: Path) -> tuple[float, int]:
    """Run a process to its end.

    Returns:
        Time of the start, in Unix seconds, and peak of resident memory in bytes.
    """
    with log.open("wb") as file:
        launched = time.time()
        process = subprocess.Popen(arguments, env=environment(), stdout=file, stderr=file, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(log.read_text()[-3000:])
    return launched, usage.ru_maxrss * 1024


def ours(options: dict[str, Any]) -> Training:
    """A training by our worker, with some options changed."""

    def train(case: Case, model: Path, directory: Path, seed: int) -> Measured:
        from core.config.document import ConfigDocument
        from core.runs.record.events import StepEvent
        from core.runs.record.state import EventTail
        from core.runs.record.store import create_run

        write_jsonl(case.train, directory / "rows.jsonl")
        document = ConfigDocument()
        settings = {
            "model.base": str(model),
            "data.train": str(directory / "rows.jsonl"),
            # Cut out of prose, rows do not end as answers do.
            "data.allow": ["stop_untrained"],
            "train.batch_size": case.batch_size,
            "train.max_steps": case.steps,
            "train.learning_rate": case.learning_rate,
            "train.warmup": WARMUP,
            "train.max_length": 1024,
            "train.seed": seed,
            "checkpoint.every_steps": 1_000_000,
            **options,
        }
        for name, value in settings.items():
            document.set(name, value)
        run = create_run(document.validate(), "bench")
        launched, peak = wait([sys.executable, "-c", IN_ORDER, str(run.path)], directory / "ours.log")
        steps = [event for event in EventTail(run.events_path).read_all() if isinstance(event, StepEvent)]
        return measured(case, launched, [event.t for event in steps], peak, model, run.adapter_path, directory)

    return train


#: Program that runs our worker with the rows in the order of the file, as the peers have them.
IN_ORDER = """
import sys
from core.worker.process import environment
environment.prepare()
from core.worker import __main__
from core.worker.data import batches
batches.DataOrder.window = lambda self, step: list(range(step * self.batch_size, (step + 1) * self.batch_size))
sys.exit(__main__.main(sys.argv[1:]))
"""


def peer(python: str, script: str, *, checkpointing: bool) -> Training:
    """A training by another program.

    Args:
        python: The interpreter of its environment.
        script: The file in this directory that runs it.
        checkpointing: Whether it uses gradient checkpointing.
    """

    def train(case: Case, model: Path, directory: Path, seed: int) -> Measured:
        write_jsonl(case.train, directory / "rows.jsonl")
        spec = {
            "model": str(model),
            "rows": str(directory / "rows.jsonl"),
            "output": str(directory / "out"),
            "adapter": str(directory / "adapter"),
            "steps": case.steps,
            "batch_size": case.batch_size,
            "learning_rate": case.learning_rate,
            "warmup": warmup_steps(WARMUP, case.steps),
            "checkpointing": checkpointing,
            "seed": seed,
        }
        path = directory / "spec.json"
        path.write_text(json.dumps(spec))
        launched, peak = wait([python, str(Path(__file__).with_name(script)), str(path)], directory / "log")
        told = [json.loads(line) for line in Path(f"{path}.steps").read_text().splitlines()]
        ends = [entry["t"] for entry in told if "t" in entry]
        return measured(case, launched, ends, peak, model, Path(str(spec["adapter"])), directory)

    return train


def median(values: list[Measured], field: str) -> float:
    """The median of one field."""
    return float(statistics.median(getattr(value, field) for value in values))


def table(found: dict[str, list[Measured]]) -> str:
    """Medians as Markdown, and ratios to TRL."""
    lines = [
        "| | tokens/s | peak RSS MB | launch to first step s | held-out loss |",
        "|---|---:|---:|---:|---:|",
    ]
    fields = ("tokens_per_second", "peak_rss", "first_step", "loss")
    peer = {field: median(found["TRL"], field) for field in fields} if "TRL" in found else None
    for name, values in found.items():
        if not values:
            continue
        middle = {field: median(values, field) for field in fields}
        cells = [
            f"{middle['tokens_per_second']:.0f}",
            f"{middle['peak_rss'] / 1e6:,.0f}",
            f"{middle['first_step']:.1f}",
            f"{middle['loss']:.4f}",
        ]
        if peer is not None and name != "TRL":
            cells = [f"{cell} ({middle[field] / peer[field]:.2f})" for cell, field in zip(cells, fields, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all trainings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["tickets", "full"], help="one of the cases")
    parser.add_argument("--parts", action="store_true", help="also measure our training with single parts left out")
    parser.add_argument("--no-peers", action="store_true", help="measure our training alone")
    parser.add_argument("--llama-factory", help="the Python of an environment that has LLaMA-Factory")
    parser.add_argument("--out", type=Path, help="where the results go (default: bench/results/train-DATE.json)")
    arguments = parser.parse_args()
    model = paths.models_dir() / "smollm2-135m-instruct"
    if not model.is_dir():
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    trainings: dict[str, Training] = {"localtune": ours({})}
    if arguments.parts:
        trainings |= {
            "without shared beginnings": ours({"train.share_prefix": False}),
            "without fused layers": ours({"train.fused_layers": False}),
            "4-bit weights dequantized each time": ours({"memory.keep_dequantized": "off"}),
            "packing": ours({"train.packing": True}),
        }
    if not arguments.no_peers:
        ours_too = sys.executable
        trainings["TRL"] = peer(ours_too, "train_peer.py", checkpointing=False)
        trainings["TRL, as it comes"] = peer(ours_too, "train_peer.py", checkpointing=True)
        if arguments.llama_factory:
            trainings["LLaMA-Factory"] = peer(
                arguments.llama_factory, "train_llama_factory_peer.py", checkpointing=False
            )
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LOCALTUNE_HOME"] = scratch
        cases = [make(model, steps) for make, steps, name in CASES if arguments.only in (None, name)]
        for case in cases:
            found: dict[str, list[Measured]] = {name: [] for name in trainings}
            for number in range(arguments.rounds):
                for name, train in trainings.items():
                    if number and name in ONCE:
                        continue
                    with tempfile.TemporaryDirectory(dir=scratch) as directory:
                        try:
                            found[name].append(train(case, model, Path(directory), SEED + number))
                        except Failed as error:
                            print(f"{case.name}, {name}: {error}", file=sys.stderr, flush=True)
                            continue
                    print(f"{case.name}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
            results[case.name] = {name: [vars(value) for value in values] for name, values in found.items()}
            print(f"\n{case.name}, medians of {arguments.rounds}; in brackets by TRL\n\n{table(found)}\n", flush=True)
    today = datetime.datetime.now().date().isoformat()
    out = arguments.out or ROOT / "bench" / "results" / f"train-{today}.json"
    out.write_text(
        json.dumps(
            {"date": today, "python": platform.python_version(), "libraries": versions(), "results": results}, indent=1
        )
        + "\n"
    )


def versions() -> dict[str, str]:
    """Versions of the installed packages."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


CASES = ((tickets, 16, "tickets"), (full_rows, 6, "full"))

if __name__ == "__main__":
    main()
