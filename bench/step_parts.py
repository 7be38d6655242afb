"""Where the time of a training step goes, part by part, against what the machine's matrix products reach.

``python bench/step_parts.py`` runs the windows of the sample tickets (and with ``--full`` rows of 512 tokens) through
the starter model on the CPU as the worker does, and prints a table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.worker.process import environment

environment.prepare()

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.train_rows import Case, full_rows, tickets
from core import paths
from core.config.schema import Config
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import LoadedModel, load_model, make_accelerator, trainable_parameters
from core.worker.oom.retry import keep_freed_memory
from core.worker.optim.optim import make_optimizer
from core.worker.setup.objective import check_model, choose_packing, wants_packing
from core.worker.setup.ready_model import fuse_layers
from tests.core.worker.steps.stepper import Stepper

RANK, WARM, STEPS = 16, 3, 6
PRODUCTS = {"aten::mm", "aten::addmm_", "aten::addmm", "aten::linear", "aten::matmul"}
ATTENTION = {"aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::_softmax", "aten::_softmax_backward_data"}


def matmul_rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Operations per second of a matrix product of this size, with nothing else running."""
    left, right = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    torch.nn.functional.linear(left, right)
    times = []
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - began)
    return 2 * rows * inputs * outputs / float(np.median(times))


def part(name: str, shapes: Any, vocabulary: int) -> str:
    """The part of a step that an operation belongs to."""
    sizes = {size for shape in shapes for size in shape} if shapes else set()
    if "bitsandbytes" in name or "dequantize" in name:
        return "dequantizing 4-bit weights"
    if vocabulary in sizes:
        return "head and cross-entropy"
    if name in PRODUCTS:
        return "products with adapters" if RANK in sizes else "products with frozen weights"
    if name in ATTENTION or "scaled_dot_product" in name:
        return "attention"
    return "everything else: norms, rotary, activation, casts, copies"


def report(case: Case, model: Path, options: dict[str, Any]) -> None:
    """Measure and print one case."""
    config = Config.model_validate(
        {"data": {"train": "rows.jsonl"}, "train": {"batch_size": case.batch_size, **options}, "method": {"rank": RANK}}
    )
    loaded = load_model(model, method="qlora", precision="auto", device="cpu", for_training=True)
    adapted = attach_adapters(loaded.model, config.method, seed=1, base=model)
    loaded = LoadedModel(adapted, loaded.tokenizer, loaded.device, loaded.dtype)
    rows = [
        TokenizedRow(np.array(row["input_ids"], np.int32), np.array([label != -100 for label in row["labels"]]))
        for row in case.train
    ]
    fused = fuse_layers(config, loaded)
    fused.keep_weights(loaded.dtype)
    plain, packed = SupervisedLoss(loaded.model), wants_packing(config, fused)
    check = check_model(loaded, plain, rows, make_accelerator(loaded).autocast, laid_out=packed)
    loss = SupervisedLoss(loaded.model, choose_packing(config, loaded, rows, fused, check))
    keep_freed_memory()
    windows = Stepper(loaded, loss, rows, notice=lambda *told: print(*told, file=sys.stderr))
    optimizer = make_optimizer(trainable_parameters(loaded.model), config.train)

    def step(number: int) -> int:
        window = list(range(number * case.batch_size, (number + 1) * case.batch_size))
        tokens = windows.run(window, where="a step").tokens
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tokens

    for number in range(WARM):
        step(number)
    began = time.perf_counter()
    tokens = sum(step(number) for number in range(WARM, WARM + STEPS))
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for number in range(WARM, WARM + STEPS):
            step(number)
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    spent: Counter[str] = Counter()
    for event in profiled.key_averages(group_by_input_shape=True):
        spent[part(event.key, event.input_shapes, vocabulary)] += event.self_cpu_time_total / 1e6
    total = sum(spent.values())
    print(f"\n{case.name}: {tokens / seconds:.0f} tokens/s, {seconds / STEPS:.2f} s a step\n")
    print("| part | share | ms a step |\n|---|---:|---:|")
    for name, value in spent.most_common():
        print(f"| {name} | {value / total:.0%} | {1000 * value / STEPS:.0f} |")


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also rows of 512 tokens, all of them learned")
    parser.add_argument("--plain", action="store_true", help="without fused layers and shared beginnings")
    arguments = parser.parse_args()
    model = paths.models_dir() / "smollm2-135m-instruct"
    if not model.is_dir():
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    for rows in (512, 1024):
        rates = [matmul_rate(rows, 576, 1536, dtype) / 1e9 for dtype in (torch.bfloat16, torch.float32)]
        print(f"{rows} x 576 x 1536: {rates[0]:.0f} GFLOP/s in bf16, {rates[1]:.0f} in fp32")
    options = {"fused_layers": False, "share_prefix": False} if arguments.plain else {}
    report(tickets(model, WARM + STEPS), model, options)
    if arguments.full:
        report(full_rows(model, WARM + STEPS), model, options)


if __name__ == "__main__":
    main()
