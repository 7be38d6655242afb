"""Packing, loss, objective and evaluations of a run, built after the model has passed its self-check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import PeftModel

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.control_point import ControlPoint
from core.worker.data.dataset import Dataset
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import Packing, common_beginning
from core.worker.evaluate.evaluate import Evaluator, Probe
from core.worker.evaluate.evaluations import Evaluations
from core.worker.evaluate.samples import SampleWriter
from core.worker.fused.install import Fused
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective, make_objective
from core.worker.loss.reference import AdapterOffReference, PrecomputedReference, Reference
from core.worker.model.model import LoadedModel, decoder_layers
from core.worker.oom.retry import shortage_explained
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.setup.preparation import Prepared
from core.worker.setup.ready_model import SMALLER, ReadyModel
from core.worker.setup.self_check import SelfCheck, check_head, check_model


@dataclass(frozen=True)
class Goal:
    """Loss and objective of a run."""

    loss: SupervisedLoss
    """Sums the loss of a batch."""
    objective: Objective
    """Objective on the training rows."""
    held_out: Objective | None
    """Objective on the held-out rows; None if there are none."""
    reference_budget: int | None
    """Token budget with which the reference was precomputed; None if it was not."""


def make_goal(
    config: Config,
    prepared: Prepared,
    model: ReadyModel,
    found: Checkpoint | None,
    recorder: Recorder,
    controls: Controls,
) -> Goal:
    """Check the model, and build its loss and objectives.

    Args:
        config: Of the run.
        prepared: The rows.
        model: The model.
        found: The checkpoint that the run goes on from; None at its beginning.
        recorder: Of the run.
        controls: Stops it.

    Raises:
        MemoryShortageError: If memory runs out.
        StopRequested: If a stop was asked for.
        UserError: If the model cannot be trained as the configuration says.
    """
    loaded, autocast = model.loaded, model.accelerator.autocast
    with shortage_explained("in the check of the model", SMALLER):
        loss = _make_loss(config, model, prepared.dataset)
    measured: PrecomputedReference | None = None
    if config.method.name in WEIGHT_METHODS:
        budget = found.manifest.get("reference_budget") if found is not None else None
        measured = PrecomputedReference(int(budget or TOKEN_BUDGETS[loaded.device.type]), recorder.warn)
    reference: Reference = AdapterOffReference(loaded.model, loss) if measured is None else measured

    def make(dataset: Dataset) -> Objective:
        return make_objective(config, loss, dataset.rows, reference, loaded, autocast)

    objective, held_out = make(prepared.dataset), None if prepared.held_out is None else make(prepared.held_out)
    asked = objective.reference_sequences() + ([] if held_out is None else held_out.reference_sequences())
    if measured is not None and asked:
        # Before the weights change, and before a checkpoint is restored.
        report = recorder.reporter("loading_model", controls.check_stop)
        measured.precompute(
            asked, loaded, loss, autocast, lambda done, total: report("answers by the reference", done, total)
        )
    return Goal(loss, objective, held_out, None if measured is None else measured.token_budget)


def _make_loss(config: Config, model: ReadyModel, dataset: Dataset) -> SupervisedLoss:
    """The loss with its packing."""
    loaded, fused = model.loaded, model.fused
    plain = SupervisedLoss(loaded.model)
    packed = wants_packing(config, fused)
    check = check_model(loaded, plain, dataset.rows, model.accelerator.autocast, laid_out=packed)
    check_head(check, loaded.dtype, config.model.base)
    packing = choose_packing(config, loaded, dataset.rows, fused, check)
    return SupervisedLoss(loaded.model, packing)


def wants_packing(config: Config, fused: Fused) -> bool:
    """True if configuration and attention allow packed batches.

    Args:
        config: Of the run.
        fused: The fused parts of the model.
    """
    return fused.attention and (config.train.packing or _shares(config))


def _shares(config: Config) -> bool:
    # Rows that share a prefix would share its dropout or noise.
    drawn = config.method.dropout > 0 or config.method.neftune_alpha is not None
    return config.train.share_prefix and not drawn


def choose_packing(
    config: Config, loaded: LoadedModel, rows: Sequence[TokenizedRow], fused: Fused, check: SelfCheck
) -> Packing:
    """Sequence packing and shared prefixes of a run, if the model keeps rows apart.

    Args:
        config: Of the run.
        loaded: The model.
        rows: Of the data.
        fused: The fused parts of the model.
        check: The self-check of the model.

    Raises:
        UserError: If ``train.packing`` is on and rows could not be kept apart.
    """
    pack, share = config.train.packing, _shares(config)
    if not pack and not share:
        return Packing()
    reason = check.mixed if fused.attention else _missing_attention(loaded)
    if reason is not None and pack:
        raise UserError(
            f"train.packing is on, and rows that lie one behind another would not be kept apart: {reason}.",
            "Set train.packing = false; rows of like length go together anyway, so that little is padded.",
        )
    share = share and not check.draws and reason is None
    # On a CPU the price is part of the measured constant.
    pair = _pair_price(loaded) if share and check.masked and loaded.device.type != "cpu" else 0.0
    return Packing(share, pack, common_beginning(rows) if share else 0, pair)


def _pair_price(loaded: LoadedModel) -> float:
    """Cost of a pair of tokens in causal attention, relative to a token going through the layers, by
    multiplications."""
    settings = loaded.model.config.get_text_config()
    head = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    layers = decoder_layers(loaded.model)
    products = [module for layer in layers for module in layer.modules() if hasattr(module, "in_features")]
    # An adapter layer repeats the features of its base layer.
    weights = sum(int(m.in_features) * int(m.out_features) for m in products if not hasattr(m, "base_layer"))
    return 2.0 * float(settings.num_attention_heads * head) * len(layers) / max(weights, 1)


def _missing_attention(loaded: LoadedModel) -> str:
    causal = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    kind = causal.config._attn_implementation
    return "its attention has code of its own" if kind == "sdpa" else f"the model's attention is {kind}"


def make_evaluations(control_point: ControlPoint, prepared: Prepared, goal: Goal, token_budget: int) -> Evaluations:
    """The evaluations of a run.

    Args:
        control_point: Attended between two passes; holds the model, the state and the checkpointer.
        prepared: The held-out rows, the probe and the questions.
        goal: The objective on the held-out rows.
        token_budget: Token budget of a batch, memory permitting.
    """
    config, loaded, recorder = control_point.config, control_point.loaded, control_point.recorder
    autocast, template, attend = control_point.autocast, control_point.template, control_point.attend
    token_budget = min(token_budget, TOKEN_BUDGETS[loaded.device.type])
    samples = SampleWriter(
        loaded,
        prepared.questions,
        autocast=autocast,
        template=template,
        warn=lambda message, hint: recorder.warn("no_samples", message, hint),
    )
    evaluator: Evaluator | None = None
    probe: Probe | None = None
    if prepared.held_out is not None and goal.held_out is not None:
        evaluator = Evaluator(
            loaded,
            prepared.held_out,
            objective=goal.held_out,
            token_budget=token_budget,
            autocast=autocast,
            max_new_tokens=config.chat.max_new_tokens if config.eval.exact_match else 0,
            template=template,
            check=attend,
            samples=0 if samples.is_needed else config.eval.samples,
            notice=recorder.warn,
        )
        if prepared.probe:
            probe = Probe(loaded, goal.loss, prepared.probe, token_budget, autocast, attend, recorder.warn)
    return Evaluations(evaluator, probe, samples, control_point.checkpointer, attend)
