"""Self-check before training: our path through hidden states and head must give the model's own logits, and packed rows
must give the hidden states of the rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.worker.data.batches import collate
from core.worker.data.encode import TokenizedRow
from core.worker.data.packing import LaidOut, lay_out
from core.worker.fused.attention import LayoutError, spell_windows_out
from core.worker.fused.attention_kernels import Kernel
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import LoadedModel, decoder_layers, evaluation_mode
from core.worker.model.recurrent import describe_kind, recurrent_kinds
from core.worker.oom.retry import MemoryShortageError, attempt, is_out_of_memory
from core.worker.process.determinism import restore_rng, rng_state

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
        if laid_out and mixed is None and _may_draw(loaded.model):
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


def _may_draw(model: Any) -> bool:
    """True if any setting or module named dropout or jitter is nonzero. The adapters' own dropout is checked
    elsewhere."""
    settings: dict[str, Any] = model.config.to_dict()
    places = [settings, *(vars(module) for module in model.modules())]
    named = (
        value
        for place in places
        for name, value in place.items()
        if ("drop" in name or "jitter" in name) and isinstance(value, float)
    )
    modules = (module.p for module in model.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd))
    return any(share > 0 for share in itertools.chain(named, modules))


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
