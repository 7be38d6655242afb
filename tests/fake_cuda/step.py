"""Training steps of the project's own recipe on the stand-in card.

``python -m tests.fake_cuda.step 4090 [CASE…]`` prints a JSON object with what each step did, by the name of its case in
:mod:`tests.fake_cuda.cases`; without names for all steps of two layers. It is a process of its own, since torch is not
the same afterwards.
"""
# ruff: noqa: E402 - the guard is loaded before torch

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from tests.fake_cuda import guard

guard.load()

from core.worker.process import environment

environment.prepare()

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate.state import AcceleratorState
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.bias import CausalBias
from transformers import masking_utils

from core.config.derived import updates_in_backward
from core.config.schema import Config
from core.memory.sizes import Arithmetic
from core.worker.data.batches import DataOrder
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import Packing
from core.worker.distributed.strategy import make_update, single
from core.worker.fused import attention, kernels, trial
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import AdapterOffReference, make_objective
from core.worker.measure import skeleton
from core.worker.measure.tracker import RememberedOperations
from core.worker.model.activation_offload import available_offload
from core.worker.model.model import LoadedModel, decoder_layers
from core.worker.model.text_part import described_causal_lm
from core.worker.oom.retry import create_handles
from core.worker.optim.optim import LearningRate
from core.worker.setup.ready_model import fuse_layers
from core.worker.train import FinetuneRecipe
from tests.core.worker.process.told_recorder import ToldRecorder
from tests.core.worker.steps.stepper import NoGovernor, Stepper
from tests.fake_cuda import allocator, roofline
from tests.fake_cuda.card import CARDS, DEVICE, OnCard, install
from tests.fake_cuda.cases import KINDS, MUTATIONS, PUBLISHED, Case
from tests.fake_cuda.tracer import Trace, Tracer, trace_triton, wait

#: The mode of all fake tensors: libraries keep some for the next step.
MODE = FakeTensorMode(allow_non_fake_inputs=True)
#: Its operations, which the steps of all cases repeat.
OPERATIONS = RememberedOperations(MODE, DEVICE)
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Shares of the experts, by which a mixture's tokens are unevenly spread.
_UNEVEN = 1.5


def prepare(card: str) -> None:
    """Put the card and all that is there with it in place.

    Args:
        card: Its name in :data:`CARDS`.
    """
    install(CARDS[card], wait)
    trace_triton()
    # Trials compare numbers, which are not there; what they would prove is taken as proven.
    passed = trial.Trial("", torch.bfloat16, 0.0, 1.0)
    trials = [name for name in vars(kernels) if name.endswith(("_trial", "_trials")) and name.startswith("_")]
    replaced: list[tuple[Any, str, Any]] = [
        (F, "scaled_dot_product_attention", attend),
        (skeleton, "FakeTensorMode", lambda: MODE),
        *((kernels, name, _answering((passed,) if name.endswith("s") else passed)) for name in trials),
        (trial, "_outputs_and_gradients", lambda _way, _inputs: []),
        *((module, "find_fault", _answering("")) for module in _with_trials()),
        # transformers reads no values of what it takes for a compiler's tensors.
        (masking_utils, "is_tracing", lambda _tensor=None: False),
    ]
    for owner, name, value in replaced:
        setattr(owner, name, value)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *_args, **_named: answer


def _with_trials() -> list[Any]:
    """Modules of updates whose kernels are tried before use."""
    updates = [module for name, module in sys.modules.items() if name.startswith("core.worker.optim.")]
    return [module for module in updates if hasattr(module, "find_fault")]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``F.scaled_dot_product_attention`` by the kernel that torch chooses on a card of compute capability 8 and more.

    Raises:
        RuntimeError: Where it would be the one that makes all scores.
    """
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    grouped, lower = query.shape[1] != key.shape[1], isinstance(attn_mask, CausalBias)
    half = query.dtype in PRECISIONS.values()
    known = query.shape[-1] == value.shape[-1] <= 256
    aten = torch.ops.aten
    if (attn_mask is None or lower) and half and known and (enable_gqa or not grouped):
        out: torch.Tensor = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal or lower, False, scale=scale
        )[0]
        return out
    if grouped and enable_gqa:
        raise RuntimeError("attention with all scores: grouped heads without flash attention")
    bias = None
    if attn_mask is not None:
        bias = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device)
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    found: torch.Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal, scale=scale
    )[0]
    return found


class _NoGovernor(NoGovernor):
    def step_done(self, **_figures: Any) -> None:
        """Nothing is governed."""


class _Recorder(ToldRecorder):
    def begin_step(self) -> None:
        """Nobody watches."""

    def end_step(self, step: int) -> None:
        """Nobody watches."""


class Run:
    """A run on the card, ready for its first step.

    Args:
        case: The steps.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.config = config = Config.model_validate(case.sections)
        dtype = PRECISIONS[str(config.train.precision)]
        quantized = config.method.name == "qlora"
        how = Arithmetic(bytes=2, autocast=True, quantized=quantized, cuda=False)
        with OnCard():
            bare = skeleton.build_bare(described_causal_lm(case.model, "the case"), dtype, "the case")
            made = skeleton.build_skeleton(bare, config, how)
        self.model = made.model
        self.model.train()
        loaded = LoadedModel(self.model, SimpleNamespace(pad_token_id=0), DEVICE, dtype)
        # Fusing changes the functions of the family's file, for all of its models in this process.
        file = sys.modules[type(made.causal).__module__]
        self._file, self._functions = file, dict(vars(file))
        fuse_layers(config, loaded, attention_alone=case.attention_alone)
        in_backward = updates_in_backward(config)
        rows = self._rows(np.random.default_rng(0))
        loss = SupervisedLoss(self.model, Packing(case.prefix > 0, case.pack, case.prefix))
        AcceleratorState._reset_state(True)
        autocast: Any = lambda: torch.autocast("cuda", dtype)  # noqa: E731
        with MODE:
            objective = make_objective(config, loss, rows, AdapterOffReference(self.model, loss), loaded, autocast)
            stepper = Stepper(
                loaded,
                loss,
                rows,
                objective=objective,
                offload=available_offload("on", DEVICE) if case.offload else None,
                whole=in_backward,
            )
            state = stepper.state
            state.total_steps = 10
            if not in_backward:
                state.token_budget = case.rows * case.length * objective.sequences_per_row
            if case.kept is not None:
                stepper.checkpointing.enable(kept_layers=case.kept, offload=case.offload)
            parts: Any = stepper.recipe.parts
            parts.update = make_update(single(), config, loaded, parts.accelerator, state, _refuse)
            parts.learning_rate = LearningRate(config.train, state)
            parts.order = DataOrder([row.longest for row in rows], len(rows), 0)
            parts.micro_batches = stepper.micro_batches
            parts.governor = _NoGovernor()
            parts.file = parts.compilation = None
            self.recipe = FinetuneRecipe(config, _Recorder(), stepper.recipe.controls, parts)

    def _rows(self, random: np.random.Generator) -> list[TokenizedRow]:
        case = self.case
        total = case.rows * case.micro_batches

        def row(length: int) -> TokenizedRow:
            ids = random.integers(100, 5000, length).astype(np.int32)
            ids[: case.prefix] = np.arange(100, 100 + case.prefix)
            return TokenizedRow(ids, np.arange(length) >= max(case.prefix + 1, 1))

        if case.mixed:
            return [row(int(length)) for length in random.integers(60, case.length + 1, 2 * total)]
        # Packing needs rows that differ.
        lengths = [case.length - (32 * number if case.pack else 0) for number in range(total)]
        made = [row(length) for length in lengths]
        if self.config.train.objective == "dpo":
            return [TokenizedRow(one.input_ids, one.supervised, rejected=row(len(one))) for one in made]
        return made

    def trace(self, steps: int = 2) -> tuple[Trace, Trace]:
        """Do steps: the trace of the last one, and that of all. The first one makes what stays."""
        tracer = Tracer(self.case.hidden, OPERATIONS)
        with MODE, tracer, self._routed(), mutated(self):
            create_handles(DEVICE)
            events = []
            for _ in range(steps):
                tracer.begin()
                self.recipe.step()
                events += tracer.trace.events
        return tracer.trace, dataclasses.replace(tracer.trace, events=events)

    @contextlib.contextmanager
    def _routed(self) -> Iterator[None]:
        """Routers whose choices are uneven, as they are read by the host."""
        experts = self.case.model.get("num_experts")
        usual = FakeTensor.tolist
        if experts is None:
            yield
            return
        random = np.random.default_rng(0)
        choices = self.case.rows * self.case.length * self.case.model["num_experts_per_tok"]

        def tolist(self: FakeTensor) -> Any:
            values = usual(self)
            if self.shape != (experts,) or self.is_floating_point():
                return values
            return random.multinomial(choices, random.dirichlet(np.full(experts, _UNEVEN))).cumsum().tolist()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeTensor, "tolist", tolist)
            yield

    def close(self) -> None:
        """Undo what is not the model's alone."""
        vars(self._file).update(self._functions)
        attention.drop_masks()

    @property
    def held(self) -> int:
        """Bytes of the model's tensors."""
        storages = {}
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            inner = [tensor]
            if (state := getattr(tensor, "quant_state", None)) is not None:
                inner += _tensors(state)
            for one in inner:
                storages[one.untyped_storage()._cdata] = one.untyped_storage().nbytes()
        return sum(storages.values())


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) is type(state):
            yield from _tensors(value)


def _refuse(code: str, message: str, hint: str) -> None:
    raise AssertionError(f"{code}: {message} {hint}")


# Faults.


@contextlib.contextmanager
def mutated(run: Run) -> Iterator[None]:
    """The fault of a case in the first layer of its model."""
    if not run.case.mutation:
        yield
        return
    layer = decoder_layers(run.model)[0]
    usual = layer.forward
    fault = _FAULTS[run.case.mutation]
    layer.forward = lambda hidden, *args, **named: fault(layer, usual(hidden, *args, **named))
    try:
        yield
    finally:
        layer.forward = usual


def _sum_on_the_cpu(_layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden + hidden.detach().cpu().sum(-1, keepdim=True)


def _read(_layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden * float(hidden.detach().abs().max())


def _matrix_in_fp32(_layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    matrix = torch.zeros(hidden.shape[-1], hidden.shape[-1], dtype=torch.float32, device=hidden.device)
    # Below autocast, as in an autograd function.
    with torch.autocast("cuda", enabled=False):
        return hidden + (hidden.flatten(0, 1) @ matrix).view_as(hidden)


def _in_fp32(_layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return (hidden.float() * 0.5).to(hidden.dtype)


def _list_as_index(_layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden + hidden[:, [0]]


_FAULTS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "a sum on the CPU": _sum_on_the_cpu,
    "float() in a layer": _read,
    "a matrix in fp32": _matrix_in_fp32,
    "a layer in fp32": _in_fp32,
    "a list as an index": _list_as_index,
}


def report(case: Case) -> dict[str, Any]:
    """Figures of the second step of a case, as JSON; ``error`` if it failed."""
    try:
        run = Run(case)
        try:
            step, both = run.trace()
        finally:
            run.close()
    except Exception as error:
        chain: list[BaseException] = [error]
        while (before := chain[-1].__context__) is not None:
            chain.append(before)
        sentence = ", after ".join(f"{type(one).__name__}: {one}" for one in chain)
        return {"error": sentence, "traceback": "".join(traceback.format_exception(error)[-12:])}
    return {
        "launches": len(step.launches),
        "bytes": step.bytes,
        "flops": step.flops,
        "waits": _counted(step.waits),
        "uploads": len(step.uploads),
        "widened": _counted(step.widened),
        "mixed": _counted(step.mixed),
        "attention": step.attention,
        "kernels": Counter(launch.name for launch in step.launches if launch.name.startswith("triton::")),
        "largest": Counter(launch.name for launch in step.launches).most_common(12),
        "held": run.held,
        "peak": step.peak,
        **({"reserved": allocator.reserved(both.events), "seconds": roofline.seconds(step)} if _is_large(case) else {}),
    }


def _is_large(case: Case) -> bool:
    return case in PUBLISHED.values()


def _counted(found: list[tuple[Any, str]]) -> list[tuple[Any, str, int]]:
    return [(what, where, count) for (what, where), count in Counter(found).most_common()]


def main(card: str, *names: str) -> None:
    """Print what steps do on a card.

    Args:
        card: The card.
        names: The cases.
    """
    prepare(card)
    faults = {name: dataclasses.replace(KINDS["dense"], mutation=name) for name in MUTATIONS}
    known = {**KINDS, **faults, **PUBLISHED}
    found = {}
    for name in names or KINDS:
        found[name] = report(known[name])
        gc.collect()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
