"""QLoRA of an 8B-shaped model on one GPU: peak memory and speed beside TRL's SFTTrainer, with parts on and off.

``python bench/train_gpu.py`` makes a model in the shape of Llama-3.1-8B with random weights, trains it on rows of 2,048
random tokens, two a step, within 24 GB of the card (``torch.cuda.set_per_process_memory_fraction``), and writes
``bench/results/train-gpu-DATE.json``. Without a GPU it says so and ends. ``--small`` takes a model of two layers,
to try the script itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.train import IN_ORDER, Failed, environment, versions, wait
from bench.train_rows import ROOT, write_jsonl

LIMIT_BYTES = 24 * 1024**3
ROWS, LENGTH, STEPS, SKIPPED = 2, 2048, 12, 3
#: The shape of Llama-3.1-8B, but for the tokenizer.
SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
}
MAKE_MODEL = """
import json, sys
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
torch.set_default_dtype(torch.bfloat16)
config = AutoConfig.for_model(**json.loads(sys.argv[1]), pad_token_id=0, bos_token_id=1, eos_token_id=2)
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config)
model.save_pretrained(sys.argv[2])
words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(sys.argv[2])
"""
#: Program that limits its use of the card's memory, followed by the training.
LIMITED = """
import torch
torch.cuda.set_per_process_memory_fraction(min(1.0, {limit} / torch.cuda.get_device_properties(0).total_memory))
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "localtune": {},
    "without Liger's loss": {"memory.liger": "off"},
    "compiled": {"train.compile": True},
    "without fused layers": {"train.fused_layers": False},
    "activations recomputed": {"memory.gradient_checkpointing": "on"},
    "activations recomputed, compiled": {"memory.gradient_checkpointing": "on", "train.compile": True},
}


def rate(ends: list[float]) -> float:
    """Tokens per second, from the ends of the steps."""
    steps = [end - begin for begin, end in zip(ends[SKIPPED - 1 :], ends[SKIPPED:], strict=False)]
    return ROWS * LENGTH / statistics.median(steps)


def ours(model: Path, rows: Path, directory: Path, options: dict[str, Any]) -> dict[str, float]:
    """A training by our worker."""
    from core.config.document import ConfigDocument
    from core.runs.events import MemoryEvent, StepEvent
    from core.runs.store import create_run
    from core.runs.tail import EventTail

    document = ConfigDocument()
    settings = {
        "model.base": str(model),
        "data.train": str(rows),
        "data.allow": ["stop_untrained"],
        "train.batch_size": ROWS,
        "train.max_steps": STEPS,
        "train.max_length": LENGTH,
        "checkpoint.every_steps": 1_000_000,
        **options,
    }
    for name, value in settings.items():
        document.set(name, value)
    run = create_run(document.validate(), "bench")
    program = LIMITED.format(limit=LIMIT_BYTES) + IN_ORDER
    wait([sys.executable, "-c", program, str(run.path)], directory / "ours.log")
    events = EventTail(run.events_path).read_all()
    peaks = [event.peak_bytes or 0 for event in events if isinstance(event, MemoryEvent)]
    predicted = [
        sum(event.predicted_bytes.values())
        for event in events
        if isinstance(event, MemoryEvent) and event.predicted_bytes
    ]
    return {
        "tokens_per_second": rate([event.t for event in events if isinstance(event, StepEvent)]),
        "peak_bytes": max(peaks),
        "predicted_bytes": predicted[0] if predicted else 0,
    }


def trl(model: Path, rows: Path, directory: Path, *, checkpointing: bool) -> dict[str, float]:
    """A training by TRL's SFTTrainer."""
    spec = {
        "model": str(model),
        "rows": str(rows),
        "output": str(directory / "out"),
        "adapter": str(directory / "adapter"),
        "steps": STEPS,
        "batch_size": ROWS,
        "learning_rate": 2e-4,
        "warmup": 1,
        "checkpointing": checkpointing,
        "seed": 42,
    }
    path = directory / "spec.json"
    path.write_text(json.dumps(spec))
    program = LIMITED.format(limit=LIMIT_BYTES) + (
        "import runpy, sys, json\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "open(sys.argv[1] + '.peak', 'w').write(str(torch.cuda.max_memory_allocated()))\n"
    )
    peer = Path(__file__).with_name("train_peer.py")
    wait([sys.executable, "-c", program, str(peer), str(path)], directory / "log")
    told = [json.loads(line) for line in Path(f"{path}.steps").read_text().splitlines()]
    peak = float(Path(f"{path}.peak").read_text())
    return {"tokens_per_second": rate([entry["t"] for entry in told if "t" in entry]), "peak_bytes": peak}


def attempted(what: str, work: Any) -> dict[str, Any]:
    """A measurement, or the reason why there is none: not everything fits within the limit."""
    try:
        found: dict[str, Any] = work()
    except Failed as error:
        lines = [line for line in str(error).splitlines() if "Error" in line or "error" in line]
        found = {"failed": lines[-1] if lines else str(error)[-200:]}
    print(f"{what}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure all trainings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a model of two layers")
    parser.add_argument("--out", type=Path, help="where the results go (default: bench/results/train-gpu-DATE.json)")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("not run: no GPU")
        return
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LOCALTUNE_HOME"] = scratch
        model = Path(scratch) / "model"
        shape = {**SHAPE, **(SMALL if arguments.small else {})}
        subprocess.run(
            [sys.executable, "-c", MAKE_MODEL, json.dumps(shape), str(model)], check=True, env=environment(), cwd=ROOT
        )
        drawn = random.Random(1)
        ids = [[drawn.randrange(3, shape["vocab_size"]) for _ in range(LENGTH)] for _ in range(ROWS * STEPS)]
        rows = Path(scratch) / "rows.jsonl"
        write_jsonl([{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids], rows)
        results: dict[str, Any] = {}
        for name, options in VARIANTS.items():
            results[name] = attempted(name, lambda options=options: ours(model, rows, Path(scratch), options))
        for name, checkpointing in (("TRL", False), ("TRL, activations recomputed", True)):
            results[name] = attempted(name, lambda on=checkpointing: trl(model, rows, Path(scratch), checkpointing=on))
    today = datetime.datetime.now().date().isoformat()
    out = arguments.out or ROOT / "bench" / "results" / f"train-gpu-{today}.json"
    written = {"date": today, "card": torch.cuda.get_device_name(), "libraries": versions(), "results": results}
    out.write_text(json.dumps(written, indent=1) + "\n")
    for name, found in results.items():
        if "failed" in found:
            print(f"{name}: {found['failed']}")
        else:
            print(f"{name}: {found['tokens_per_second']:,.0f} tokens/s, {found['peak_bytes'] / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
