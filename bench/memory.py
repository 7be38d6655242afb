"""How wrong the memory plan is: small models in real shapes are trained by the worker itself, each in a fresh process,
and the peak that it has measured is put beside the one that it has predicted.

``python bench/memory.py`` writes ``bench/results/memory-DATE.json`` and prints the table of errors. On a machine with a
GPU the allocator's peak is compared, elsewhere the resident memory (``VmHWM``) with everything in it: interpreter,
libraries, tokenizer and mapped files. The starter model is taken from ``$LOCALTUNE_HOME/models``, if it is prepared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.memory_cases import CASES, SHAPES, STARTER, Case
from core import paths
from core.config.document import ConfigDocument
from core.runs.record.events import MemoryEvent
from core.runs.record.state import EventTail
from core.runs.record.store import Run, create_run

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
#: Makes a random model, in a process of its own so that this one stays small.
MAKE_MODEL = """
import json, sys
from core.worker.process import environment
environment.prepare()
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
torch.set_default_dtype(torch.bfloat16)
config = AutoConfig.for_model(**json.loads(sys.argv[1]), pad_token_id=0, bos_token_id=1, eos_token_id=2)
AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])
words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(sys.argv[2])
"""


def environment() -> dict[str, str]:
    """The environment of the processes: one thread, so that the peaks do not depend on the number of cores."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def model_directory(shape: str, starter: Path, home: Path) -> Path:
    """The model directory of a shape, made if it does not exist yet."""
    if shape == STARTER:
        return starter
    directory = home / "models" / shape
    if not (directory / "tokenizer.json").is_file():
        directory.mkdir(parents=True)
        arguments = [sys.executable, "-c", MAKE_MODEL, json.dumps(SHAPES[shape]), str(directory)]
        subprocess.run(arguments, check=True, env=environment(), cwd=ROOT, capture_output=True)
    return directory


def prepare(case: Case, base: Path, home: Path) -> Run:
    """A run whose rows are random tokens, so that every length is exact."""
    config = json.loads((base / "config.json").read_text())
    vocabulary = int(config["vocab_size"])
    drawn = random.Random(1)
    data = Path(tempfile.mkdtemp(dir=home)) / "rows.jsonl"
    with data.open("w") as file:
        for length in case.lengths:
            ids = [drawn.randrange(3, vocabulary) for _ in range(length)]
            unlearned = round(length * (1 - case.supervised))
            file.write(json.dumps({"input_ids": ids, "labels": [-100] * unlearned + ids[unlearned:]}) + "\n")
    document = ConfigDocument()
    settings = {
        "model.base": str(base),
        "data.train": str(data),
        # Random rows do not end as answers do.
        "data.allow": ["stop_untrained"],
        "train.batch_size": len(case.lengths),
        # The second step has gradients, optimizer states and activations at once.
        "train.max_steps": 2,
        "train.max_length": 8192,
        **case.settings,
    }
    for name, value in settings.items():
        document.set(name, value)
    return create_run(document.validate(), "memory")


def measure(case: Case, base: Path, home: Path) -> dict[str, Any]:
    """Train, and read the predicted and the measured peak from the run's own record."""
    run = prepare(case, base, home)
    with run.log_path.open("wb") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "core.worker", str(run.path)], cwd=ROOT, env=environment(), stdout=log, stderr=log
        )
    if ended.returncode:
        raise SystemExit(f"{case.name}: the run has failed; see {run.log_path}")
    memory = [event for event in EventTail(run.events_path).read_all() if isinstance(event, MemoryEvent)]
    predicted = next(event for event in memory if event.predicted_bytes)
    parts = dict(predicted.predicted_bytes or {})
    peak = max(event.peak_bytes or 0 for event in memory if event.device == predicted.device)
    on_gpu = predicted.device != "cpu"
    # The allocator's peak includes neither its unused memory nor the context.
    apart = ("fragmentation", "runtime") if on_gpu else ()
    total = sum(size for name, size in parts.items() if name not in apart)
    return {
        "name": case.name,
        "shape": case.shape,
        "device": predicted.device,
        "measured": "max_memory_allocated" if on_gpu else "VmHWM",
        "predicted_bytes": total,
        "measured_bytes": peak,
        "error": total / peak - 1,
        "parts": parts,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not exceeded by the given share of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def summary(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The errors in four numbers, as shares."""
    errors = [result["error"] for result in results]
    sizes = [abs(error) for error in errors]
    return {
        "configurations": len(errors),
        "p50": statistics.median(sizes),
        "p95": quantile(sizes, 0.95),
        "most_over": max(0.0, *errors),
        "most_under": max(0.0, *(-error for error in errors)),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| configuration | predicted MB | measured MB | error |", "|---|---:|---:|---:|"]
    for result in results:
        sizes = f"{result['predicted_bytes'] / 1e6:.0f} | {result['measured_bytes'] / 1e6:.0f}"
        lines.append(f"| {result['name']} | {sizes} | {result['error']:+.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all cases, or those whose name holds one of the given words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="measure only configurations whose name holds one of these")
    parser.add_argument("--out", type=Path, help="where the results go (default: bench/results/memory-DATE.json)")
    parser.add_argument("--resume", action="store_true", help="keep what is there, and measure what is missing")
    parser.add_argument("--most", type=int, default=len(CASES), help="measure no more configurations than this")
    arguments = parser.parse_args()
    today = datetime.datetime.now().date().isoformat()
    out = arguments.out or ROOT / "bench" / "results" / f"memory-{today}.json"
    found = {result["name"]: result for result in json.loads(out.read_text())["results"]} if arguments.resume else {}
    measured_before = len(found)
    starter = paths.models_dir() / STARTER
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        os.environ["LOCALTUNE_HOME"] = scratch
        for case in CASES:
            chosen = not arguments.words or any(word in case.name for word in arguments.words)
            if not chosen or case.name in found or len(found) - measured_before >= arguments.most:
                continue
            if case.shape == STARTER and not starter.is_dir():
                print(f"{case.name}: not measured, the starter model is not prepared", file=sys.stderr)
                continue
            found[case.name] = measure(case, model_directory(case.shape, starter, home), home)
            print(f"{case.name}: {found[case.name]['error']:+.1%}", file=sys.stderr, flush=True)
            # Earlier measurements are kept when this is interrupted.
            write(out, today, found)
    written = write(out, today, found)
    print(table(written["results"]))
    print(json.dumps(written["summary"], indent=1))


def write(out: Path, today: str, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Write the results in the order of the cases, and return them."""
    results = [found[case.name] for case in CASES if case.name in found]
    written = {
        "date": today,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "summary": summary(results),
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=1) + "\n")
    return written


if __name__ == "__main__":
    main()
