"""Products in 8 bits, studied on a CPU: does training keep its quality if frozen matrices multiply in fp8?

``python bench/fp8.py`` trains the starter model and a random one of its size, each with several seeds, on the sample
tickets and on rows of 512 tokens of this documentation. The arms are a base in 16 bits, a base in NF4, and NF4 with the
products of its frozen matrices simulated in fp8 (E4M3, arXiv 2209.05433): scaled by row or by matrix, in forward only
or both ways. Rounded are both factors of each product, as ``torch._scaled_mm`` takes them; sums are those of the CPU.
Held-out losses and answers are measured as always, in the arithmetic of the base.

Finished trainings in ``--json FILE`` are skipped, so that a study can be spread over days. ``--table`` prints what is
there: mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.worker.process import environment

environment.prepare()

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sample_data
from core.atomic import write_atomic
from core.config.document import dump_config, load_config
from core.models.find import STARTER_NAME, locate_model
from core.runs.record.state import RunState, hostname
from core.runs.record.store import Run
from core.worker.fused.lora import FusedLora
from core.worker.libraries import import_libraries
from core.worker.process.control import Controls
from core.worker.process.openmp import SpinControl
from core.worker.process.recorder import Recorder
from core.worker.setup.build import build
from core.worker.train import FinetuneRecipe

ROOT = Path(__file__).resolve().parents[1]
#: Largest finite number of E4M3.
LARGEST = 448.0
#: Tokens of a long row.
LONG = 512


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        method: ``lora`` has a base in 16 bits, ``qlora`` one in NF4.
        scales: Products in fp8, scaled by ``row`` or by ``matrix``; empty for none.
        backward: The products of backward as well.
    """

    method: str
    scales: str = ""
    backward: bool = False


ARMS = {
    "16 bits": Arm("lora"),
    "NF4": Arm("qlora"),
    "row, forward": Arm("qlora", "row"),
    "row, both": Arm("qlora", "row", backward=True),
    "matrix, forward": Arm("qlora", "matrix"),
    "matrix, both": Arm("qlora", "matrix", backward=True),
}


class Fp8Products(TorchDispatchMode):
    """Simulation of products with frozen matrices in fp8.

    A product is one of those if its second factor is a kept matrix of a fused layer, or its transpose.

    Args:
        matrices: The matrices, ``(outputs, inputs)``; they must stay where they are.
        scales: ``row``: a scale for each row of the first factor and each column of the second; ``matrix``: one each.
        backward: Simulate the products of backward as well.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], scales: str, *, backward: bool) -> None:
        super().__init__()
        self._matrices = {matrix.data_ptr(): matrix.shape for matrix in matrices}
        self._by_row, self._backward = scales == "row", backward
        self._rounded: dict[tuple[int, bool], torch.Tensor] = {}
        self.products = 0
        """Number of simulated products."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        at = {"mm": 0, "addmm": 1, "addmm_": 1}.get(name)
        if at is not None and (shape := self._matrices.get(args[at + 1].data_ptr())) is not None:
            is_forward = args[at + 1].shape != shape or args[at + 1].stride() != (shape[1], 1)
            if is_forward or self._backward:
                self.products += 1
                factors = self._round(args[at]), self._round_matrix(args[at + 1], is_forward)
                args = (*args[:at], *factors, *args[at + 2 :])
        return func(*args, **(kwargs or {}))

    def _round_matrix(self, matrix: torch.Tensor, is_forward: bool) -> torch.Tensor:
        key = matrix.data_ptr(), is_forward
        if key not in self._rounded:
            self._rounded[key] = self._round(matrix.T).T
        return self._rounded[key]

    def _round(self, rows: torch.Tensor) -> torch.Tensor:
        """Values as fp8 holds them, in fp32 arithmetic and rounded to the dtype they had."""
        values = rows.float()
        most = values.abs().amax(dim=1, keepdim=True) if self._by_row else values.abs().amax()
        scale = most.clamp(min=1e-12) / LARGEST
        return ((values / scale).to(torch.float8_e4m3fn).float() * scale).to(rows.dtype)


def random_model(directory: Path) -> Path:
    """The starter model with random weights, as transformers initializes it."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    starter = locate_model(STARTER_NAME)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(starter), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(starter).save_pretrained(directory)
    return directory


def prose(directory: Path) -> list[str]:
    """Options for rows of 512 tokens of the documentation, the last 16 of a shuffled order held out."""
    import random

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate_model(STARTER_NAME))
    texts = [path.read_text() for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])]
    tokens = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
    # A few tokens of room: text cut inside a word may be tokenized otherwise.
    cut = LONG - 16
    rows = [tokenizer.decode(tokens[at : at + cut]) for at in range(0, len(tokens) - cut, cut)]
    random.Random(42).shuffle(rows)
    files = {"train": rows[:-16], "eval": rows[-16:]}
    for name, texts in files.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [
        *(f"data.{name}={directory / f'{name}.jsonl'}" for name in files),
        *("data.format=text", f"train.max_length={LONG}", "train.batch_size=2", "train.learning_rate=2e-4"),
        "eval.exact_match=false",
    ]


def train(arm: Arm, seed: int, options: Sequence[str], work: Path) -> dict[str, Any]:
    """Train a run in this process, and measure it at its end."""
    settings = [f"method.name={arm.method}", f"train.seed={seed}", "eval.baseline=false", *options]
    config = load_config(sample_data.path("tickets.toml"), settings)
    run = Run(work / "run")
    run.path.mkdir()
    write_atomic(run.config_path, dump_config(config))
    RunState(state="queued", host=hostname(), updated=time.time()).write(run.state_path)
    recorder, controls = Recorder(run), Controls()
    parts = build(config, recorder, controls, None)
    recipe = FinetuneRecipe(config, recorder, controls, parts)
    layers = [layer.forward for layer in parts.loaded.model.modules() if isinstance(layer.forward, FusedLora)]
    for layer in layers:
        layer.weight.keep(parts.loaded.dtype)
    matrices = [layer.weight.matrix(parts.loaded.dtype) for layer in layers]
    products, began = Fp8Products(matrices, arm.scales, backward=arm.backward), time.monotonic()
    while parts.state.step < parts.state.total_steps:
        if arm.scales:
            with products:
                recipe.step()
        else:
            recipe.step()
    evaluator = parts.evaluations.evaluator
    assert evaluator is not None
    event, *_ = evaluator.measure(parts.state.step, lambda *_: None)
    events = map(json.loads, run.events_path.read_text().splitlines())
    norms = [event["grad_norm"] for event in events if event["type"] == "step"]
    return {
        "loss": event.loss,
        "exact_match": event.exact_match,
        "largest_norm": max(norms),
        "products": products.products,
        "seconds": round(time.monotonic() - began),
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Held-out losses, their differences from NF4 with the same seed, exact matches, and largest gradient norms: mean
    and range over the seeds."""
    nf4 = {(*_trained(item), item["seed"]): item["loss"] for item in found if item["arm"] == "NF4"}
    lines = []
    for (model, rows, steps, arm), group in itertools.groupby(
        sorted(found, key=lambda item: (*_trained(item), list(ARMS).index(item["arm"]))),
        key=lambda item: (*_trained(item), item["arm"]),
    ):
        items = list(group)
        losses = [item["loss"] for item in items]
        over = [item["loss"] - nf4.get((model, rows, steps, item["seed"]), math.nan) for item in items]
        matches = [item["exact_match"] for item in items if item["exact_match"] is not None]
        lines.append(
            f"{model:8} {rows:8} {steps} steps  {arm:16} seeds: {len(items)}  loss {statistics.mean(losses):.4f} "
            f"({min(losses):.4f} to {max(losses):.4f})  over NF4 {statistics.mean(over):+.4f} "
            f"({min(over):+.4f} to {max(over):+.4f})"
            + (f"  exact {statistics.mean(matches):.3f} ({min(matches):.3f} to {max(matches):.3f})" if matches else "")
            + f"  norm at most {max(item['largest_norm'] for item in items):.2f}"
        )
    return "\n".join(lines)


def _trained(item: Mapping[str, Any]) -> tuple[str, str, int]:
    return item["model"], item["rows"], item["steps"]


def main() -> None:
    """Train what is missing, and write each result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["starter", "random"], default=["starter", "random"])
    parser.add_argument("--rows", nargs="+", choices=["tickets", "prose"], default=["tickets", "prose"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps on the tickets; half of them on prose")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="file of the results")
    parser.add_argument("--table", action="store_true", help="train nothing, and print the results")
    args = parser.parse_args()
    found = json.loads(args.json.read_text()) if args.json.exists() else []
    if args.table:
        print(table(found))
        return
    import_libraries()
    SpinControl().start()
    for seed, model, rows, name in itertools.product(args.seeds, args.models, args.rows, args.arms):
        steps = args.steps if rows == "tickets" else args.steps // 2
        which = {"model": model, "rows": rows, "arm": name, "seed": seed, "steps": steps}
        if any(which.items() <= item.items() for item in found):
            continue
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            base = STARTER_NAME if model == "starter" else str(random_model(work / "model"))
            options = [f"model.base={base}", f"train.max_steps={steps}"]
            if rows == "prose":
                options += prose(work)
            elif model == "random":
                # Its answers are never right.
                options.append("eval.exact_match=false")
            found.append({**which, **train(ARMS[name], seed, options, work)})
        print(json.dumps(found[-1]), flush=True)
        write_atomic(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
