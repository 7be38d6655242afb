"""Self-check of the model, and the packing, loss, objective and evaluations of a run, built once it has passed.

The self-check compares our path through hidden states and head with the model's own logits, and packed rows with the
hidden states of the rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.batching import TOKEN_BUDGETS
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.control_point import ControlPoint
from core.worker.data.batches import collate
from core.worker.data.dataset import Dataset
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import LaidOut, Packing, common_beginning, lay_out
from core.worker.evaluate.evaluate import Evaluator, Probe
from core.worker.evaluate.evaluations import Evaluations
from core.worker.evaluate.samples import SampleWriter
from core.worker.fused.attention import LayoutError, spell_windows_out
from core.worker.fused.attention_kernels import Kernel
from core.worker.fused.install import Fused
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import AdapterOffReference, Objective, PrecomputedReference, Reference, make_objective
from core.worker.model.model import LoadedModel, decoder_layers, evaluation_mode, may_draw
from core.worker.model.recurrent import describe_kind, recurrent_kinds
from core.worker.oom.retry import MemoryShortageError, attempt, is_out_of_memory, shortage_explained
from core.worker.process.control import Controls
from core.worker.process.determinism import restore_rng, rng_state
from core.worker.process.recorder import Recorder
from core.worker.setup.preparation import Prepared
from core.worker.setup.ready_model import SMALLER, ReadyModel

#: Largest difference between our logits and the model's that rounding explains.
LOGIT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1.0, torch.float16: 0.25}
#: Largest relative difference of hidden states between packed rows and the rows alone. Rounding to 16 bit stays below a
#: hundredth; leaking between rows exceeds a tenth.
LAYOUT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
#: Length of the rows tried, and of their common prefix, in tokens.
LENGTH, PREFIX = 24, 10
#: Length of the single row tried if these do not fit, in tokens.
LEAST = 16
#: Two rows after their common prefix, and one alone.
GROUPS = (([0, 1], PREFIX), ([2], 0))


@dataclass(frozen=True)
class SelfCheck:
    """Result of the self-check."""

    logits_differ: float
    """The largest difference between our logits and the model's own."""
    mixed: str | None
    """Reason why packing would leak between rows; None if it does not, or was not tested."""
    draws: bool = False
    """True if the model draws random numbers in training; known if packing was tested."""
    masked: bool = False
    """True if the device needs dense masks for shared prefixes; known if packing was tested."""


def check_model(
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    autocast: Callable[[], AbstractContextManager[Any]],
    *,
    laid_out: bool,
) -> SelfCheck:
    """Run three short rows through the model in its own way and in ours, in evaluation mode because dropout would make
    them differ. The random state is left unchanged.

    If they do not fit in memory, the beginning of one of them is tried, which checks only the logits.

    Args:
        loaded: The model.
        loss: Of the model.
        rows: Training rows, for their tokens.
        autocast: The arithmetic of training.
        laid_out: Also try them packed; see :mod:`core.worker.data.packing`.

    Raises:
        MemoryShortageError: If not even that fits.
    """
    made = _rows(rows)

    @torch.no_grad()
    def try_rows() -> SelfCheck:
        ids, supervised = collate(made, 0, torch.device("cpu"))
        laid = lay_out(ids.numpy(), supervised.numpy(), loaded.device, groups=list(GROUPS))
        ids, supervised = ids.to(loaded.device), supervised.to(loaded.device)
        mixed, draws = None, False
        with evaluation_mode(loaded.model), autocast():
            difference, states = loss.verify(ids)
            if laid_out:
                mixed = _runs_on(loaded.model) or _mixed(loaded, loss, laid, states[:, :-1][supervised[:, 1:]])
        if laid_out and mixed is None and may_draw(loaded.model):
            with autocast():
                mixed, draws = _in_training(loaded, loss, laid)
        return SelfCheck(difference, mixed, draws, Kernel.MASKED in laid.layout.kernels)

    def try_again_with_masks() -> SelfCheck:
        try:
            return try_rows()
        except Exception as error:
            # Some families inspect their masks and need tensors.
            if is_out_of_memory(error) or not spell_windows_out(loaded.device):
                raise
        return try_rows()

    @torch.no_grad()
    def try_head() -> float:
        ids = torch.as_tensor(made[0].input_ids[:LEAST], dtype=torch.int64, device=loaded.device)[None]
        with evaluation_mode(loaded.model), autocast():
            return loss.verify(ids)[0]

    whole = attempt(try_again_with_masks)
    if whole.result is not None:
        return whole.result
    least = attempt(try_head)
    if least.result is None:
        raise MemoryShortageError(
            f"Memory ran out with {LEAST} tokens, before training: {least.reason}",
            "Close what else holds its memory, or choose a smaller base model.",
        )
    return SelfCheck(least.result, f"memory ran out in trying it ({whole.reason})")


def _runs_on(model: Any) -> str | None:
    """Reason why rows cannot be packed in a model with recurrent layers; None without such layers. This is not
    measured: a state carried over may be below rounding here and still matter in a trained model."""
    kinds = recurrent_kinds(model)
    if not kinds:
        return None
    return f"its {describe_kind(kinds[0])} carry a state from token to token, which would run on into the next row"


def _mixed(loaded: LoadedModel, loss: SupervisedLoss, laid: LaidOut, wanted: torch.Tensor) -> str | None:
    """Reason why packing would leak between rows; None if it does not.

    Args:
        loaded: The model.
        loss: Of the model.
        laid: The rows.
        wanted: Hidden states of the rows alone, ``(supervised, hidden)``.
    """
    try:
        found = loss.hidden_laid_out(laid)
    except Exception as error:  # models raise anything for unknown arguments
        if is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0]
        return f"the model refuses it ({type(error).__name__}: {first})"
    layers, attended = len(decoder_layers(loaded.model)), len(laid.layout.attended)
    if attended < layers:
        # Other kinds of layers may ignore the ends of rows.
        return f"{attended} of its {layers} layers have attention that can be told where rows end"
    share = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return None if share <= LAYOUT_TOLERANCE[loaded.dtype] else f"its hidden states would differ by {share:.1%}"


def _in_training(loaded: LoadedModel, loss: SupervisedLoss, laid: LaidOut) -> tuple[str | None, bool]:
    """Reason why rows cannot be packed in training, None if they can; and True if the model draws random numbers there,
    for example for dropout."""
    before = rng_state()
    was_training = loaded.model.training
    loaded.model.train()
    try:
        loss.hidden_laid_out(laid)
    except LayoutError as error:
        return str(error), True
    finally:
        draws = not all(map(torch.equal, _generators(rng_state()), _generators(before)))
        restore_rng(before)
        loaded.model.train(was_training)
    return None, draws


def _generators(state: dict[str, Any]) -> list[torch.Tensor]:
    return [state["torch"], *state.get("cuda", [])]


def check_head(found: SelfCheck, dtype: torch.dtype, base: str) -> None:
    """Refuse a model whose path from hidden states to logits is not supported.

    Args:
        found: Of the model.
        dtype: Of its arithmetic.
        base: Its name.

    Raises:
        UserError: If our logits are not the model's own.
    """
    if not found.logits_differ <= LOGIT_TOLERANCE[dtype]:
        raise UserError(
            f"The output head of {base} works in a way that is not known here "
            f"(logits differ by {found.logits_differ:.3g}).",
            "Report the model's architecture; training it would go wrong silently.",
        )


def _rows(rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """Three short rows of different lengths from the data's own tokens, with a common prefix."""
    tokens = np.concatenate([row.input_ids for row in rows[:64]])
    tokens = np.resize(tokens, 4 * LENGTH)
    made = []
    for number in range(1, 4):
        own = tokens[number * LENGTH : (number + 1) * LENGTH - number]
        ids = np.concatenate([tokens[:PREFIX], own[PREFIX:]]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=np.bool_)
        supervised[PREFIX + 2 :] = True
        made.append(TokenizedRow(ids, supervised))
    return made


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
        return make_objective(config, loss, dataset.rows, reference, loaded, autocast, dataset.excluded)

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
