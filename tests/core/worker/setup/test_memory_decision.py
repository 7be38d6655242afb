"""Memory plan against the actual allocations of torch and bitsandbytes, layer by layer and as a whole.

All on the CPU, whose allocator reports every block; on a GPU the arithmetic is the same except for the differences that
``Arithmetic`` lists.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from core.config.schema import WEIGHT_METHODS, Config
from core.hardware import cpu
from core.memory.batching import BLOCK_ROW, SHORT_ROW, length_runs
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.memory.sizes import optimizer_bytes
from core.models.architecture.measuring import load_architecture
from core.worker.data.dataset import Dataset
from core.worker.data.encode import TokenizedRow
from core.worker.fused.file_weights import FileWeights
from core.worker.fused.install import fuse
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.activation_offload import ActivationMover, ActivationOffload, is_activation
from core.worker.model.adapters import TRAINED, adapted_layers, attach_adapters, initial_parameters
from core.worker.model.experts import ExpertsParams4bit
from core.worker.model.full_weights import choose_weights
from core.worker.model.model import (
    LoadedModel,
    load_model,
    make_accelerator,
    set_gradient_checkpointing,
    trainable_parameters,
)
from core.worker.optim.optim import make_optimizer
from core.worker.progress.state import TrainState
from core.worker.setup import memory_decision as prediction
from core.worker.setup.memory_decision import (
    Planner,
    decide_experts,
    decide_memory,
    decide_offload,
    predict_memory,
    with_experts,
)
from core.worker.setup.ready_model import fuse_layers
from core.worker.steps import first_budget
from tests.cases import cases
from tests.core.worker.model.lanes import PromptDevice
from tests.core.worker.steps.stepper import make_state
from tests.measured_here import measured_here
from tests.short_list import long_but

__all__ = ["measured_here"]

TABLES = yaml.safe_load((Path(__file__).parent / "memory.yaml").read_text(encoding="utf-8"))
MODELS: dict[str, dict[str, Any]] = TABLES["models"]
PLAIN, OTHERS, BOTH = list(MODELS)[:11], list(MODELS)[11:-2], (False, True)
FEW_SETTINGS = [tuple(row) for row in TABLES["few"]]
#: Plain families kept and recomputed, and each setting, fused and not; mixtures and a model of another layout fused.
ALL_SETTINGS = FEW_SETTINGS + [
    row
    for row in (
        *map(tuple, TABLES["long"]),
        *((family, {"checkpointing": on}, 0.02, fused) for family in PLAIN for on in BOTH for fused in BOTH),
        *((*setting, fused) for setting in TABLES["more"] for fused in BOTH),
        *((family, {"checkpointing": on}, 0.02, True) for family in OTHERS for on in BOTH),
    )
    if row not in FEW_SETTINGS
]
ROWS, LENGTH = 2, 256
ROTATION = "apply_rotary_pos_emb"
#: That of each modeling file as it was.
rotations: dict[str, Any] = {}

Patch = pytest.MonkeyPatch
ModelOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    """Directories of random models, each made once."""

    @functools.cache
    def make(family: str) -> Path:
        directory = tmp_path_factory.mktemp(family)
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[family], **ids))
        model.to(torch.bfloat16).save_pretrained(directory)
        words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(directory)
        return directory

    return make


def config_of(
    base: Path,
    precision: str = "bf16",
    checkpointing: bool = False,
    fused: bool = True,
    compile: bool = False,  # noqa: A002 - the option's name
    **method: Any,
) -> Config:
    return Config.model_validate(
        {
            "model": {"base": str(base)},
            "data": {"train": "x"},
            "method": method,
            "train": {"precision": precision, "batch_size": ROWS, "fused_layers": fused, "compile": compile},
            "memory": {"gradient_checkpointing": "on" if checkpointing else "off"},
        }
    )


def prepare(config: Config) -> LoadedModel:
    AcceleratorState._reset_state()
    loaded = load_model(
        Path(config.model.base),
        method=config.method.name,
        precision=config.train.precision,
        device="cpu",
        for_training=True,
    )
    own = config.method.name in WEIGHT_METHODS
    loaded = replace(loaded, model=(choose_weights if own else attach_adapters)(loaded.model, config.method, seed=0))
    # The rotation is replaced for all models of a family in this process.
    file = sys.modules[type(loaded.model if own else loaded.model.get_base_model()).__module__]
    if hasattr(file, ROTATION):
        setattr(file, ROTATION, rotations.setdefault(file.__name__, getattr(file, ROTATION)))
    fuse_layers(config, loaded, attention_alone=config.train.compile)
    set_gradient_checkpointing(loaded.model, config.memory.gradient_checkpointing == "on")
    return loaded


def peak_of_tensors(loaded: LoadedModel, supervised: float, length: int = LENGTH, rows: int = ROWS) -> int:
    """The most bytes that torch's allocator hands out in a pass over a micro-batch, beyond those before it.

    A first pass leaves its gradients, as the first micro-batch of a window does.
    """
    loss, accelerator = SupervisedLoss(loaded.model), make_accelerator(loaded)
    ids = torch.randint(3, 2000, (rows, length))
    learned = torch.zeros(rows, length, dtype=torch.bool)
    learned[:, int(length * (1 - supervised)) :] = True

    def run() -> None:
        with accelerator.autocast():
            total = loss(ids, learned)
        accelerator.backward(total)

    run()
    gc.collect()  # models of earlier tests, whose end would count
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def plan_of(config: Config, supervised: float, length: int = LENGTH, rows: int = ROWS, **settled: Any) -> Plan:
    planned = Rows(length_runs([length] * rows), supervised)
    return make_plan(load_architecture(Path(config.model.base)), config, Machine("cpu"), planned, **settled)


def comes_and_goes(plan: Plan) -> int:
    parts = plan.by_name()
    return sum(parts.get(name, 0) for name in ("activations", "adapter_activations", "layer", "loss"))


def assert_planned(
    config: Config,
    loaded: LoadedModel | None = None,
    supervised: float = 0.02,
    length: int = LENGTH,
    rows: int = ROWS,
    rel: float = 0.07,
    **settled: Any,
) -> Plan:
    """Check the plan's tensors that come and go against the peak of torch's allocator."""
    plan = plan_of(config, supervised, length, rows, **settled)
    assert comes_and_goes(plan) == pytest.approx(
        peak_of_tensors(loaded or prepare(config), supervised, length, rows), rel=rel
    )
    return plan


@pytest.mark.parametrize(("family", "settings", "supervised", "fused"), long_but(FEW_SETTINGS, ALL_SETTINGS), ids=str)
def test_the_plan_is_what_torch_allocates(
    family: str, settings: dict[str, Any], supervised: float, fused: bool, model_of: ModelOf
) -> None:
    config = config_of(model_of(family), fused=fused, **settings)
    loaded = prepare(config)
    plan = assert_planned(config, loaded, supervised=supervised)
    assert plan.trainable == sum(parameter.numel() for parameter in trainable_parameters(loaded.model))
    if config.method.name not in WEIGHT_METHODS:
        assert dict(plan.targets) == adapted_layers(loaded.model)


@pytest.mark.parametrize(
    ("family", "checkpointing", "length"),
    long_but(
        [("llama", False, 2 * SHORT_ROW)],
        itertools.product(["llama", "qwen3"], [False, True], [2 * SHORT_ROW, BLOCK_ROW, BLOCK_ROW + 64]),
    ),
)
def test_rows_beyond_the_short_are_planned(family: str, checkpointing: bool, length: int, model_of: ModelOf) -> None:
    """In blocks of queries, and by torch's kernel."""
    # No more tokens than the plan takes at once.
    rows = ROWS if length <= BLOCK_ROW else 1
    assert_planned(config_of(model_of(family), checkpointing=checkpointing), length=length, rows=rows)


def test_weights_that_stay_dequantized_are_not_dequantized_again(model_of: ModelOf) -> None:
    config = config_of(model_of("llama")).with_options(memory={"keep_dequantized": "on"})
    loaded = prepare(config)
    fuse(loaded.model, TRAINED).keep_weights(loaded.dtype)
    assert_planned(config, loaded)


@pytest.mark.parametrize(
    ("method", "keep"),
    long_but([("qlora", "on")], itertools.product(["qlora", "lora"], ["on", "off"])),
)
def test_merged_copies_of_weights_are_planned(model_of: ModelOf, method: str, keep: Literal["on", "off"]) -> None:
    trained = {"name": method, "train_for": "q4_0"}
    config = config_of(model_of("llama")).with_options(method=trained, memory={"keep_dequantized": keep})
    loaded = prepare(config)
    weights = FileWeights(loaded.model, fuse(loaded.model, TRAINED).lora, "Q4_0")
    weights.use(True, loaded.dtype if keep == "on" else None)
    assert_planned(config, loaded, rel=0.15)


@pytest.mark.parametrize(("kept", "supervised"), long_but([(5, 0.02)], itertools.product([1, 3, 5, 7], [0.02, 1.0])))
def test_kept_layers_beside_recomputed_layers_are_planned(kept: int, supervised: float, model_of: ModelOf) -> None:
    config = config_of(model_of("deep"), checkpointing=True)
    loaded = prepare(config)
    set_gradient_checkpointing(loaded.model, True, kept_layers=kept)
    assert_planned(config, loaded, supervised, length=512, checkpointing=True, kept_layers=kept)


@pytest.mark.long
@pytest.mark.parametrize("fused", long_but([True], [True, False]))
def test_offloaded_activations_are_missing_from_the_peak(fused: bool, model_of: ModelOf) -> None:
    config = config_of(model_of("deep"), checkpointing=True, fused=fused)
    length, loaded, device = 1024, prepare(config), PromptDevice()

    for offload in (None, ActivationOffload(ActivationMover(device), is_activation)):
        set_gradient_checkpointing(loaded.model, True, offload)
        plan = assert_planned(config, loaded, length=length, checkpointing=True, offload=offload is not None)
        assert plan.offload is (offload is not None)
    # The pass was run twice.
    moved = 8 * ROWS * length * 256 * 2
    assert sum(map(math.prod, device.shapes)) * 2 == 2 * moved
    assert moved <= plan.host_bytes <= 4 * moved


@pytest.mark.long
@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_on_experts_are_planned(family: str, checkpointing: bool, model_of: ModelOf) -> None:
    config = config_of(model_of(family), checkpointing=checkpointing, rank=8, target_experts="on")
    loaded = prepare(config)
    plan = assert_planned(config, loaded, rel=0.1)
    assert plan.trainable == sum(parameter.numel() for parameter in trainable_parameters(loaded.model))
    assert dict(plan.targets)["experts"] == 3


@cases("method", ["qlora", "lora"])
@pytest.mark.parametrize(
    "family", long_but(["llama"], ["llama", "gpt2", "gemma3, images", "mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss"])
)
def test_weights_and_adapters_are_counted_to_the_byte(family: str, method: str, model_of: ModelOf) -> None:
    config = config_of(model_of(family), name=method, rank=8)
    loaded, parts = prepare(config), plan_of(config, 1.0).by_name()
    trained = trainable_parameters(loaded.model)
    assert parts["adapters"] == sum(parameter.nbytes for parameter in trained)
    frozen = 0
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            continue
        frozen += parameter.nbytes
        if isinstance(parameter, bnb.nn.Params4bit):
            state = parameter.quant_state
            tables = (state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset)
            frozen += sum(table.nbytes for table in tables)
        elif isinstance(parameter, ExpertsParams4bit):
            frozen += sum(table.nbytes for table in parameter.quant_state.tensors())
    weights = ("linear_weights", "linear_16bit", "experts", "routers", "embeddings", "norms")
    assert sum(parts.get(name, 0) for name in weights) == frozen


def test_the_frozen_beginning_is_counted_to_the_byte(model_of: ModelOf) -> None:
    config = config_of(model_of("llama"), init="pissa", rank=8)
    loaded, plan = prepare(config), plan_of(config, 1.0)
    parts = plan.by_name()
    assert parts["initial"] == parts["adapters"] == 4 * initial_parameters(loaded.model)
    plain = plan_of(config_of(model_of("llama"), rank=8), 1.0)
    assert plan.checkpoint_bytes - plain.checkpoint_bytes == parts["initial"]


@cases("kind", ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_8bit"])
def test_sizes_of_optimizer_states_match_the_optimizers(kind: str) -> None:
    train = Config.model_validate({"data": {"train": "x"}, "train": {"optimizer": kind}}).train
    sizes: list[tuple[int, ...]] = [(16, 100), (64, 640), (8, 768), (900,)]
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    optimizer = make_optimizer(parameters, train)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    states = [item for parameter in parameters for item in optimizer.state[parameter].items()]
    kept = sum(value.nbytes for name, value in states if torch.is_tensor(value) and not name.startswith("qmap"))
    columns = [size[1] if len(size) == 2 else 1 for size in sizes]
    pairs = zip(parameters, columns, strict=True)
    assert sum(optimizer_bytes(kind, parameter.numel(), width) for parameter, width in pairs) == kept


def planner_of(config: Config, device: str) -> Planner:
    return Planner(config.model.base, torch.device(device))


def state_of(tokens: int = 100) -> tuple[Dataset, TrainState]:
    ids, learned = np.full(tokens, 3, dtype=np.int32), np.ones(tokens, dtype=np.bool_)
    dataset = Dataset(rows=[TokenizedRow(ids, learned)] * 3)
    return dataset, make_state(first_budget(torch.device("cpu"), whole=False))


def test_activations_are_recomputed_where_the_run_would_not_fit(model_of: ModelOf, monkeypatch: Patch) -> None:
    config = config_of(model_of("llama"))
    dataset, state = state_of()
    cut = replace(state, checkpointing=True, token_budget=104)
    planner = planner_of(config, "cpu")
    parts, cut_parts = (predict_memory(config, planner, dataset, each) for each in (state, cut))
    assert parts is not None
    assert cut_parts is not None
    assert parts["runtime"] > 0
    assert cut_parts["activations"] < 0.5 * parts["activations"]
    needed = sum(size for name, size in parts.items() if name != "weights_file")
    limits = [("auto", needed, False), ("auto", needed // 2, True), ("off", 1, False), ("on", 1 << 50, True)]
    for choice, limit, wanted in limits:
        monkeypatch.setattr(prediction, "_limit", lambda _device, limit=limit: limit)
        chosen = config.with_options(memory={"gradient_checkpointing": choice})
        decided = decide_memory(chosen, planner, dataset, state.token_budget)
        reason = decided.checkpointing_reason
        assert decided.checkpointing is wanted
        # Where even that does not fit, the micro-batches are as small as they are made.
        assert decided.cut is (limit < needed)
        assert reason.startswith("Activations are recomputed" if wanted else "Activations are kept")
        assert ("memory.gradient_checkpointing" in reason) is (choice != "auto")


@cases(
    ("environment", "expandable"),
    [
        ({}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512,expandable_segments:True"}, True),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, False),
    ],
)
def test_expandable_segments_are_read_from_the_environment(environment: dict[str, str], expandable: bool) -> None:
    assert prediction.has_expandable_segments(environment) is expandable


@cases(("choice", "short", "room", "wanted", "said"), TABLES["inputs_moved"])
def test_activations_are_moved_off_a_gpu_where_the_run_would_not_fit_recomputed(
    choice: str, short: int, room: int, wanted: bool, said: str, model_of: ModelOf, monkeypatch: Patch
) -> None:
    config = config_of(model_of("deep"), checkpointing=True).with_options(memory={"activation_offload": choice})
    dataset, state = state_of(tokens=1024)
    cuda = planner_of(config, "cuda")
    here = cuda.plan(config, dataset, state.token_budget, limited=False, checkpointing=True, offload=False)
    assert here is not None
    needed = here.needed_bytes
    monkeypatch.setattr(prediction, "_limit", lambda _device: needed - short)
    monkeypatch.setattr(cpu, "memory", lambda: (0, room))
    decided, reason = decide_offload(config, cuda, dataset, state.token_budget, recomputing=True)
    assert decided is wanted
    assert reason.startswith(said)
    assert bool(reason) is bool(said)
    assert decide_offload(config, cuda, dataset, state.token_budget, recomputing=False) == (False, "")
    # A run for a GPU that finds itself on a CPU goes on, and says so where it was asked to move something.
    decided, reason = decide_offload(config, planner_of(config, "cpu"), dataset, state.token_budget, recomputing=True)
    assert (decided, bool(reason)) == (False, choice == "on")
    by_need = config.with_options(memory={"gradient_checkpointing": "auto"})
    monkeypatch.setattr(prediction, "_limit", lambda _device: 1 << 50)
    decision = decide_memory(by_need, cuda, dataset, state.token_budget)
    assert decision.checkpointing is (choice == "on")
    assert decision.kept_layers == 0


@cases(("choice", "short", "room", "wanted", "said"), TABLES["experts_moved"])
def test_experts_live_on_the_host_where_the_run_would_not_fit_otherwise(
    choice: str, short: int, room: int, wanted: bool, said: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Of a mixture whose experts are most of it; decided before it is loaded."""
    values = {**MODELS["qwen3-moe"], "num_experts": 64, "moe_intermediate_size": 1024, "num_hidden_layers": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = config_of(tmp_path, checkpointing=True).with_options(memory={"offload_experts": choice})
    dataset, state = state_of()
    card = planner_of(config, "cuda")
    here = with_experts(config, there=False)
    plan = card.plan(here, dataset, state.token_budget, limited=False, offload=True)
    assert plan is not None
    # A little less than needed with the smallest micro-batches.
    least = plan.needed_bytes - sum(plan.by_name().get(name, 0) for name in ("activations", "layer", "loss"))
    monkeypatch.setattr(prediction, "_limit", lambda _device: least if short else 1 << 40)
    monkeypatch.setattr(cpu, "memory", lambda: (0, room))
    decided, reason = decide_experts(config, card, dataset, state.token_budget)
    assert (decided, reason.startswith(said), bool(reason)) == (wanted, True, bool(said))
    assert decide_experts(config, planner_of(config, "cpu"), dataset, state.token_budget) == (False, "")
    settled = with_experts(config, there=decided)
    found = card.plan(settled, dataset, state.token_budget)
    assert found is not None
    assert (found.experts_host_bytes > 0) is wanted


def test_a_model_that_cannot_be_planned_is_trained_without_a_prediction(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    config = config_of(tmp_path)
    assert predict_memory(config, planner_of(config, "cpu"), Dataset(), make_state()) is None
