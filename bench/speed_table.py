"""Estimated speed of the plan's ways on a card, as a table: ``python bench/speed_table.py``.

For each model, rows of a step and free memory: the largest micro-batches with all activations recomputed, and the way
that the plan chooses. Arithmetic only; nothing is run and no card is needed. The rates of the card are estimates, or
those that ``localtune-tui selftest`` has measured on a card of this name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_checks.models import EIGHT, ModelShape
from core.config.schema import Config
from core.memory.batching import TOKEN_BUDGETS
from core.memory.calibration import read_calibration
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.models.architecture.architecture import read_architecture
from core.units import parse_bytes

THREE = ModelShape("3b", 128256, 3072, 8192, 28, 24, 8, tied=True)
THIRTEEN = ModelShape("13b", 32000, 5120, 13824, 40, 40, 40)
#: Model, rows of a step, their tokens.
CASES = [
    ("8B", EIGHT, 8, 2048),
    ("8B", EIGHT, 8, 1024),
    ("8B", EIGHT, 8, 512),
    ("8B", EIGHT, 2, 2048),
    ("3B", THREE, 8, 2048),
    ("13B", THIRTEEN, 8, 2048),
]
GIB = 1 << 30


def cells(plan: Plan) -> str:
    """Micro-batch, kept layers, memory and estimated speed of a plan."""
    batch, speed = plan.micro_batch, round(plan.step.tokens_per_second, -1)
    kept = f"{plan.kept_layers} of {plan.layers}"
    return f"{batch.rows} x {batch.length} | {kept} | {plan.needed_bytes / GIB:.1f} GiB | {speed:,.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="NVIDIA GeForce RTX 4090")
    parser.add_argument("--gpu-memory", default="23GiB")
    arguments = parser.parse_args()
    machine = Machine(
        "cuda",
        parse_bytes(arguments.gpu_memory),
        device=arguments.device,
        calibration=read_calibration(arguments.device),
    )
    print(
        "| QLoRA, rank 16 | recomputed | kept layers | memory | tokens/s | chosen | kept layers | memory | tokens/s |"
    )
    print("|---|---|---|---:|---:|---|---|---:|---:|")
    for name, shape, count, length in CASES:
        config = Config.model_validate({"data": {"train": "x"}, "train": {"batch_size": count, "max_length": length}})
        architecture, rows = read_architecture(shape.config, name), Rows([(length, count)])
        budget = TOKEN_BUDGETS["cuda"]
        before = make_plan(architecture, config, machine, rows, token_budget=budget, checkpointing=True, offload=False)
        chosen = make_plan(architecture, config, machine, rows)
        print(f"| {name}, {count} x {length} | {cells(before)} | {cells(chosen)} |")
    print(f"\nRates: {chosen.step.source}.")


if __name__ == "__main__":
    main()
