"""Gradients of rows against autograd row by row on the model's own layers, their sketches, and Adam's metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from core.config.schema import TrainSection
from core.errors import UserError
from core.models.architecture import measuring
from core.runs.record.store import Run
from core.worker.attribution.gradients import Projection, Sketches, TokenParts, metric_of, row_gradients
from core.worker.attribution.subject import Subject
from core.worker.checkpoint.checkpoint import Checkpoint, load_tensors
from core.worker.data.encode import TokenizedRow
from core.worker.fused.lora import Factors
from core.worker.model.adapters import attach_adapters, load_state
from core.worker.model.model import load_model, trainable_parameters
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import load_states
from tests.cases import cases
from tests.e2e.workers import write_rows
from tests.measured_here import run_here

from .runs import STEPS, subject_of, trained

#: Updates of an optimizer whose metric is compared.
UPDATES = 6


def slow_gradients(run: Run, checkpoint: Checkpoint, rows: Sequence[TokenizedRow]) -> torch.Tensor:
    """Gradients of the summed losses of rows, row by row through the layers of PEFT and transformers, in Adam's
    metric by its definition: ``(rows, numbers)``."""
    from safetensors.torch import load_file

    config = run.config()
    loaded = load_model(Path(config.model.base), method="lora", precision="fp32", device="cpu")
    model = attach_adapters(loaded.model, config.method, seed=0).eval()
    assert not load_state(model, load_file(checkpoint.adapter_path / "adapter_model.safetensors"))
    states = load_tensors(checkpoint.path / "optimizer.pt")["state"]
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids).long()[None]
        logits = model(input_ids=ids).logits[0, :-1]
        learned = torch.from_numpy(row.supervised[1:].copy())
        torch.autograd.backward(F.cross_entropy(logits[learned].float(), ids[0, 1:][learned], reduction="sum"))
        parts = []
        for number, parameter in enumerate(trainable_parameters(model)):
            assert parameter.grad is not None
            moment = states[number]["exp_avg_sq"] / (1 - 0.999 ** float(states[number]["step"]))
            parts.append((parameter.grad / (moment.sqrt() + 1e-8).sqrt()).flatten())
            parameter.grad = None
        found.append(torch.cat(parts))
    return torch.stack(found)


class Whole:
    """Keeps the gradients of a batch's rows as they are."""

    def __init__(self, subject: Subject, rows: int, _width: int) -> None:
        self.found: dict[int, torch.Tensor] = {}
        self.sums = torch.zeros(())
        self._subject, self._rows = subject, rows

    def __call__(self, factors: Factors) -> None:
        for matrix, gradients in row_gradients(self._rows, factors):
            self.found[matrix.data_ptr()] = gradients.flatten(1)

    def unscale(self, scale: float) -> None:
        assert scale == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run on conversations of one and of several turns."""
    directory = tmp_path_factory.mktemp("gradients")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(directory / "home"))
        patch.setattr(measuring, "_run", run_here)
        rows = write_rows(directory / "rows.jsonl", 10)
        with rows.open("a") as file:
            turns = [("user", "printer?"), ("assistant", "yes"), ("user", "refund?"), ("assistant", "no, the login")]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
        return trained(directory, tiny_model_dir)


def test_gradients_of_rows_are_those_of_autograd_row_by_row(run: Run) -> None:
    with subject_of(run) as subject:
        checkpoint = subject.restore(STEPS)
        rows = [row for example in subject.examples for row in example.rows]
        wanted = slow_gradients(run, checkpoint, rows)
        found = []
        for at in range(0, len(rows), 4):
            batch = rows[at : at + 4]
            make = partial(Whole, subject, len(batch))
            whole = subject._backward(batch, make)  # type: ignore[type-var]
            parameters = trainable_parameters(subject.loaded.model)
            found.append(torch.cat([whole.found[parameter.data_ptr()] for parameter in parameters], dim=1))
            assert all(parameter.grad is None for parameter in parameters)
        singles = [example for example in subject.examples if len(example.rows) == 1]
        sums, units = subject.sketch_rows([example.rows[0] for example in singles]), subject.sketch(singles)
    states = load_tensors(checkpoint.path / "optimizer.pt")["state"]
    moments = [state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"])) for state in states.values()]
    metric = torch.cat([(moment.sqrt() + 1e-8).rsqrt().flatten() for moment in moments])
    ours = torch.cat(found) * metric
    assert ((ours - wanted).norm(dim=1) < 1e-3 * wanted.norm(dim=1)).all()
    single = [len(example.rows) == 1 for example in subject.examples for _ in example.rows]
    np.testing.assert_allclose(sums, units * wanted[single].norm(dim=1, keepdim=True).numpy(), rtol=2e-3, atol=1e-4)


def test_dot_products_of_sketches_are_those_of_the_gradients_in_expectation(run: Run) -> None:
    with subject_of(run) as subject:
        checkpoint = subject.restore(STEPS)
        examples = subject.examples[:6]
        exact = torch.nn.functional.normalize(slow_gradients(run, checkpoint, [each.rows[0] for each in examples]))
        wanted = (exact @ exact.T).numpy()
        errors = []
        for seed in range(16):
            subject.restore(STEPS, size=499, seed=seed)
            units = subject.sketch(examples)
            errors.append(units @ units.T - wanted)
    single = np.std(errors, axis=0)
    assert single.max() < 3 * 499**-0.5
    assert (np.abs(np.mean(errors, axis=0)) < 4 * (single + 1e-3) / 4).all()


def test_the_parts_of_tokens_add_up_to_the_score_of_their_row(run: Run) -> None:
    with subject_of(run) as subject:
        subject.restore(STEPS)
        rows = [example.rows[0] for example in subject.examples[:5]]
        direction = np.random.default_rng(0).standard_normal(4093).astype(np.float32)
        parts = subject.token_parts(rows, direction)
        sketches = subject.sketch_rows(rows)
    assert [len(own) for own in parts] == [len(row) for row in rows]
    np.testing.assert_allclose([own.sum() for own in parts], sketches @ direction, rtol=1e-3, atol=1e-2)


@cases("dtype", [torch.float32, torch.float16])
def test_gradients_of_a_diverged_run_are_refused(run: Run, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with subject_of(run) as subject:
        subject.restore(STEPS)
        # Its loss is scaled, and scaled down until the gradients are finite.
        monkeypatch.setattr(subject, "loaded", replace(subject.loaded, dtype=dtype))
        with torch.no_grad():
            trainable_parameters(subject.loaded.model)[0].fill_(float("nan"))
        with pytest.raises(UserError, match=r"^At step 6 the gradient of a row is not finite"):
            subject.sketch(subject.examples[:1])


def test_repeated_rows_are_one_example_and_rows_left_out_are_none(
    tmp_path: Path, tiny_model_dir: Path, private_home: Path
) -> None:
    run = trained(tmp_path, tiny_model_dir, data={"weights": [2.0], "exclude": "rows.jsonl:3-4"})
    with subject_of(run) as subject:
        assert [example.place.line for example in subject.examples] == [1, 2, *range(5, 13)]
        assert all(len(example.rows) == 1 for example in subject.examples)


def test_a_layer_that_only_some_tokens_go_through_is_refused() -> None:
    factors = Factors([], [], torch.zeros(5, 4), torch.zeros(5, 8), torch.zeros(5, 4))
    projection, cpu = Projection({}, size=7), torch.device("cpu")
    for receiver in (Sketches(projection, 2, 3, cpu), TokenParts(projection, torch.zeros(7), 2, 3)):
        with pytest.raises(UserError, match="only some tokens go through"):
            receiver(factors)


# The metric.


@cases(
    ("optimizer", "tolerance"),
    [("adamw", 1e-5), ("adamw_8bit", 0.1), ("paged_adamw_8bit", 0.1), ("adafactor", 0.2), ("lion_8bit", 0.0)],
)
def test_the_metric_is_that_of_the_second_moment(optimizer: str, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # As many numbers as bitsandbytes keeps in 8 bits, with scales that differ by row and column.
    scales = torch.rand(64, 1, generator=generator).exp() * torch.rand(1, 96, generator=generator).mul(4).exp() * 1e-3
    parameter = torch.nn.Parameter(torch.zeros(64, 96))
    train = TrainSection.model_validate({"optimizer": optimizer, "learning_rate": 1e-3})
    made, again = (make_optimizer([parameter], train) for _ in range(2))
    moment = torch.zeros_like(parameter)
    for _ in range(UPDATES):
        # Of one sign, or the few steps would leave moments that are not yet near their means.
        parameter.grad = torch.randn(64, 96, generator=generator).abs().add(1) * scales
        moment = 0.999 * moment + 0.001 * parameter.grad**2
        made.step()
    load_states(again, made.state_dict())
    found = metric_of(again)[parameter]
    assert found.dtype == torch.float32
    wanted = (moment / (1 - 0.999**UPDATES)).sqrt().add(1e-8).rsqrt()
    if optimizer == "lion_8bit":
        wanted = torch.ones_like(wanted)
    ratio = (found / wanted).log().abs().detach()
    assert float(ratio.quantile(0.9)) <= tolerance
    assert float(ratio.max()) <= max(10 * tolerance, 0.0)


@cases("optimizer", ["adamw", "adamw_8bit"])
def test_numbers_without_gradients_do_not_outweigh_the_others(optimizer: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(64, 96))
    made = make_optimizer([parameter], TrainSection.model_validate({"optimizer": optimizer}))
    gradient = torch.full((64, 96), 1e-2)
    gradient[:, ::2] = 0
    parameter.grad = gradient
    made.step()
    found = metric_of(made)[parameter]
    assert torch.isfinite(found).all()
    assert float(found[:, ::2].max()) < 1e3 * float(found[:, 1::2].min())
