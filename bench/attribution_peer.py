"""Gradients of rows against Bergson's, the reference implementation of gradient indexes: values, rankings and time.

``python bench/attribution_peer.py --work DIR`` trains adapters of the starter model in fp32 on 60 rows of
``bench/attribution.py``, computes the gradients of these rows and of five questions here and by Bergson, and writes
``bench/results/bergson-DATE.json``. Run it with ``OMP_NUM_THREADS=1`` in an environment of its own that has Bergson
beside this project (``pip install bergson``); the project's environment need not have it. Where PyTorch is a build for
the CPU alone, uninstall torchaudio again: Bergson requires it without need, and transformers fails to load it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import numpy as np
import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, load_from_optimizer
from bergson.data import allocate_batches
from bergson.gradients import AdamNormalizer
from bergson.utils.worker_utils import setup_model_and_peft
from datasets import Dataset

from bench.attribution import RESULTS, Question, make_rows, trained
from core.attribution.job import chosen_steps
from core.hardware.cpu import cpu_name
from core.models.find import STARTER_NAME, find_model
from core.worker.attribution.gradients import SIZE, metric_of, row_gradients
from core.worker.attribution.scores import DAMPING, direction
from core.worker.attribution.subject import Subject, opened
from core.worker.checkpoint.checkpoint import load_tensors
from core.worker.data.encode import TokenizedRow
from core.worker.fused.lora import Factors
from core.worker.model.adapters import parameter_groups
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import load_states

ROWS, STEPS, FIRST, TIMED, ROUNDS, SEED = 60, 40, 8, 20, 5, 1
#: Rows and columns that Bergson projects each matrix's gradient to.
SIDE = 16
Gradients = dict[str, torch.Tensor]


class Exact:
    """Receives the factors of a batch of rows, and keeps their gradients by the address of the matrix."""

    def __init__(self, rows: int, _width: int) -> None:
        self.found: dict[int, torch.Tensor] = {}
        self.sums = torch.zeros(())
        self._rows = rows

    def __call__(self, factors: Factors) -> None:
        """Keep the part of some layers."""
        self.found |= {matrix.data_ptr(): part.flatten(1) for matrix, part in row_gradients(self._rows, factors)}

    def unscale(self, scale: float) -> None:
        """Check the factor of the loss, which is 1 in fp32."""
        assert scale == 1


def adapters(subject: Subject) -> dict[str, torch.nn.Parameter]:
    """Matrices of the adapters by Bergson's names."""
    named = subject.loaded.model.named_parameters()
    return {name.removeprefix("base_model.").removesuffix(".weight"): own for name, own in named if own.requires_grad}


def ours(subject: Subject, rows: Sequence[TokenizedRow]) -> Gradients:
    """Gradients of rows, ``(rows, numbers)`` by matrix, fp32."""
    batches, backward = [rows[at : at + 4] for at in range(0, len(rows), 4)], subject._backward
    parts: list[Any] = [backward(each, partial(Exact, len(each))) for each in batches]  # type: ignore[type-var]
    matrices = adapters(subject).items()
    return {name: torch.cat([part.found[matrix.data_ptr()] for part in parts]) for name, matrix in matrices}


def bergson(model: Any, targets: Any, options: Any, rows: Sequence[TokenizedRow], **processing: Any) -> Gradients:
    """Bergson's gradients of rows, as :func:`ours`; ``processing`` has normalizers and a projection, if any."""
    ids = [row.input_ids.tolist() for row in rows]
    labels = [np.where(row.supervised, row.input_ids, -100).tolist() for row in rows]
    data, processor = Dataset.from_dict({"input_ids": ids, "labels": labels}), GradientProcessor(**processing)
    collector = InMemoryCollector(
        model=model.base_model, cfg=options, processor=processor, target_modules=targets, data=data
    )
    batches = allocate_batches(list(map(len, ids)), options.token_batch_size)
    CollectorComputer(model, data, collector=collector, batches=batches, cfg=options).run_with_collector_hooks()
    return dict(collector.gradients)


def gram(gradients: Gradients) -> torch.Tensor:
    """Dot products of all rows with each other, fp64."""
    return torch.stack([part.double() @ part.double().T for part in gradients.values()]).sum(dim=0)


def cosines(products: torch.Tensor) -> torch.Tensor:
    """Dot products of the rows' unit gradients."""
    lengths = products.diagonal().sqrt()
    return products / lengths[:, None] / lengths


def dots(products: torch.Tensor) -> torch.Tensor:
    """Dot products of rows' unit gradients with each question's planted answer minus the wanted one: ``(questions,
    rows)``. The products are of the rows, then of the planted answers, then of the wanted ones."""
    planted, wanted = products[ROWS:, :ROWS].chunk(2)
    return (planted - wanted) / products.diagonal()[:ROWS].sqrt()


def beside(scores: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """Rows that two rankings share among their first, and Spearman's correlation of all, by question."""
    own, wanted = (each.argsort(dim=1).argsort(dim=1) for each in (scores, reference))
    shared = ((own >= ROWS - FIRST) & (wanted >= ROWS - FIRST)).sum(dim=1)
    pairs = [torch.stack(pair).double() for pair in zip(own, wanted, strict=True)]
    correlations = [round(float(torch.corrcoef(pair)[0, 1]), 4) for pair in pairs]
    return {f"shared_of_first_{FIRST}": shared.tolist(), "spearman": correlations}


def agreement(own: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
    """Relative error of a Gram matrix, the largest error of a cosine, and the rankings."""
    error = {"gram_error": float((own - wanted).norm() / wanted.norm())}
    return {**error, "largest_cosine_error": float((cosines(own) - cosines(wanted)).abs().max())} | beside(
        dots(own), dots(wanted)
    )


def measure(subject: Subject, step: int, asked: Sequence[Question], work: Path) -> dict[str, Any]:
    """The comparison at a checkpoint; Bergson writes its counts to a directory."""
    checkpoint = subject.restore(step)
    rows = [example.rows[0] for example in subject.examples]
    pairs = [(each.text, each.planted) for each in asked] + [(each.text, each.wanted) for each in asked]
    answers = [subject.encode([{"role": "user", "content": text}], answer) for text, answer in pairs]
    # Bergson sums the losses of a row's tokens unless asked otherwise.
    options = IndexConfig(run_path=str(work / "index"), model=str(checkpoint.adapter_path), precision="fp32")
    options.partial_run_path.mkdir()
    model, targets = setup_model_and_peft(options)
    peer, everything = partial(bergson, model, targets, options), [*rows, *answers]
    found = ours(subject, everything)
    result = {"plain": agreement(gram(found), gram(peer(everything)))}

    # The metric here is of the optimizer, Bergson's of its file. Bergson divides by the root of what it is given.
    states = load_tensors(checkpoint.path / "optimizer.pt")
    optimizer = make_optimizer(parameter_groups(subject.loaded.model, None), subject.config.train)
    load_states(optimizer, states)
    metric = metric_of(optimizer)
    for name, matrix in adapters(subject).items():
        found[name] *= metric[matrix].flatten()
    own = gram(found)
    del found
    read = load_from_optimizer(model, str(checkpoint.path))
    correction = 1 - states["param_groups"][0]["betas"][1] ** float(states["state"][0]["step"])
    given = {name: AdamNormalizer((each.weight_avg_sq / correction).sqrt() + 1e-8) for name, each in read.items()}
    wanted = gram(peer(everything, normalizers=given))
    result["Adam's metric"] = agreement(own, wanted)

    units, sketches = subject.sketch(subject.examples), subject.sketch_rows(answers)
    contrasts = sketches[: len(asked)] - sketches[len(asked) :]
    index = torch.from_numpy(np.stack([units @ direction(units, each, subject.loaded.device) for each in contrasts]))
    damped = cosines(wanted)[:ROWS, :ROWS] + DAMPING * ROWS * torch.eye(ROWS, dtype=torch.float64)
    inverted = torch.linalg.solve(damped, dots(wanted).T).T
    result["index against Bergson's gradients through the same inverse"] = beside(index, inverted)
    alone = dots(gram(peer(everything, normalizers=read)))
    result["index against Bergson's own metric without an inverse"] = beside(index, alone)
    timed, projected = rows[:TIMED], partial(peer, normalizers=given, projection_dim=SIDE)
    ways: dict[str, Any] = {"index": subject.sketch_rows, "Bergson": partial(peer, normalizers=given)}
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, way in {**ways, f"Bergson, projected to {SIDE} by {SIDE}": projected}.items():
            began = time.perf_counter()
            way(timed)
            times.setdefault(name, []).append((time.perf_counter() - began) / TIMED)
    return {**result, "seconds_a_row": {name: round(statistics.median(all_), 3) for name, all_ in times.items()}}


def main() -> None:
    """Train, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory of the run, which is kept and used again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bergson-{datetime.date.today()}.json")
    arguments = parser.parse_args()
    base = find_model(STARTER_NAME)
    if base is None:
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    work = arguments.work.absolute()
    work.mkdir(exist_ok=True)
    os.environ["LOCALTUNE_HOME"] = str(work / "home")
    rows, questions = make_rows(SEED)
    # All planted rows, and others in their order.
    rows = sorted(rows, key=lambda row: not row[2])[:ROWS]
    changes: dict[str, Any] = {"method": {"name": "lora"}, "train": {"max_steps": STEPS, "precision": "fp32"}}
    run = trained(rows, SEED, work, base, **changes)
    with opened(run, lambda *_: None) as subject, tempfile.TemporaryDirectory() as directory:
        step = chosen_steps(run)[-1]
        found = measure(subject, step, questions[::6], Path(directory))
    facts: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "machine": f"{cpu_name()}, {torch.get_num_threads()} thread",
        "libraries": {name: version(name) for name in ("bergson", "torch", "transformers", "peft")},
    }
    facts |= {"seed": SEED, "rows": ROWS, "step": step, "numbers_a_sketch": SIZE}
    arguments.out.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
