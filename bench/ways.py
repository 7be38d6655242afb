"""Ways of fitting a run into memory, measured: smaller micro-batches, some layers recomputed, all of them.

``python bench/ways.py --limit 1.6GB`` trains the starter model (or ``--model``) on rows of random tokens, in the way
that the plan chooses within that much memory, with all activations recomputed, and with all of them kept, taking turns,
and prints for each the plan's memory and estimated speed and the measured speed. ``--all`` measures smaller
micro-batches as well, ``--json FILE`` writes the figures. Nothing limits the memory in fact.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.worker.process import environment

environment.prepare()

import numpy as np
import torch

from core import paths
from core.config.schema import Config
from core.memory.batching import TOKEN_BUDGETS
from core.memory.plan import Machine, Plan, Way
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.models.architecture.measuring import load_architecture
from core.units import parse_bytes
from core.worker.data.batches import collate, split_window
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import LoadedModel, load_model, make_accelerator, set_gradient_checkpointing
from core.worker.oom.retry import keep_freed_memory
from core.worker.setup.ready_model import fuse_layers


def plan_of(config: Config, machine: Machine, rows: Rows, way: Way | None) -> Plan:
    """The plan of a way; of the one that it chooses itself for None."""
    architecture = load_architecture(Path(config.model.base))
    if way is None:
        return make_plan(architecture, config, machine, rows)
    return make_plan(
        architecture,
        config,
        machine,
        rows,
        token_budget=way.token_budget,
        checkpointing=way.kept_layers < architecture.depth,
        kept_layers=way.kept_layers,
        dequantized=False,
    )


def load(config: Config) -> LoadedModel:
    """The model with adapters, as a run has it."""
    method, device = config.method, config.hardware.device
    loaded = load_model(Path(config.model.base), method=method.name, precision="auto", device=device, for_training=True)
    loaded = replace(loaded, model=attach_adapters(loaded.model, method, seed=0))
    fuse_layers(config, loaded)
    loaded.model.train()
    if loaded.device.type == "cpu":
        keep_freed_memory()
    return loaded


class Steps:
    """Forward and backward passes of a step's rows.

    Args:
        loaded: The model.
        rows: Rows of a step.
        length: Tokens of each.
    """

    def __init__(self, loaded: LoadedModel, rows: int, length: int) -> None:
        random, vocabulary = np.random.default_rng(0), len(loaded.tokenizer)
        learned = np.ones(length, dtype=np.bool_)
        self._rows = [
            TokenizedRow(random.integers(5, vocabulary, length).astype(np.int32), learned) for _ in range(rows)
        ]
        self._loaded, self._loss, self._accelerator = loaded, SupervisedLoss(loaded.model), make_accelerator(loaded)
        self._lengths = [length] * rows

    def seconds(self, way: Way, depth: int) -> float:
        """Duration of a step in a way."""
        device = self._loaded.device
        set_gradient_checkpointing(self._loaded.model, way.kept_layers < depth, kept_layers=way.kept_layers)
        began = time.perf_counter()
        for batch in split_window(range(len(self._rows)), self._lengths, way.token_budget):
            padded = collate([self._rows[row] for row in batch], self._loaded.pad_id, device)
            with self._accelerator.autocast():
                loss = self._loss(*padded)
            self._accelerator.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(paths.models_dir() / "smollm2-135m-instruct"))
    parser.add_argument("--limit", required=True, help="memory that the plan may take: 1.6GB")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit = parse_bytes(arguments.limit)
    if not limit:
        parser.error(f"--limit {arguments.limit} is no size")
    config = Config.model_validate(
        {
            "model": {"base": arguments.model},
            "data": {"train": "rows.jsonl"},
            "train": {"batch_size": arguments.rows, "max_length": arguments.length},
        }
    )
    loaded = load(config)
    kind: Any = loaded.device.type
    machine = Machine(kind, limit, bf16=loaded.dtype == torch.bfloat16)
    rows = Rows([(arguments.length, arguments.rows)])
    chosen = plan_of(config, machine, rows, None)
    depth, first = chosen.layers, TOKEN_BUDGETS[kind]
    ways = {
        "chosen": chosen.way,
        "all recomputed": Way(first, 0),
        "all kept": Way(first, depth),
    }
    if arguments.all:
        ways |= {f"all kept, {first // part}": Way(first // part, depth) for part in (2, 4)}
    steps = Steps(loaded, arguments.rows, arguments.length)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.turns + 1):
        for name, way in ways.items():
            seconds = steps.seconds(way, depth)
            if turn:  # the first turn warms up
                taken[name].append(seconds)
    tokens, found = arguments.rows * arguments.length, {}
    print(chosen.reason)
    print(f"{'way':<20} {'budget':>7} {'kept':>5} {'planned MB':>11} {'estimated':>10} {'measured tokens/s':>18}")
    for name, way in ways.items():
        plan = plan_of(config, machine, rows, way)
        measured, estimated = tokens / statistics.median(taken[name]), plan.step.tokens_per_second
        megabytes = plan.needed_bytes / 1e6
        planned = f"{way.token_budget:>7} {way.kept_layers:>5} {megabytes:>11.0f} {estimated:>10.0f}"
        print(f"{name:<20} {planned} {measured:>18.0f}")
        found[name] = {
            "token_budget": way.token_budget,
            "kept_layers": way.kept_layers,
            "needed_bytes": plan.needed_bytes,
            "estimated_tokens_per_second": estimated,
            "tokens_per_second": measured,
        }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"limit": limit, "reason": chosen.reason, "ways": found}, indent=1))


if __name__ == "__main__":
    main()
