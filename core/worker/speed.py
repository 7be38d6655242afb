"""What a run computes faster than the model's own modules would, decided before its first step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from core.config.schema import Config
from core.errors import UserError
from core.worker.adapters import TRAINED
from core.worker.batches import collate
from core.worker.checkpoint import restore_rng, rng_state
from core.worker.fused.attention import LayoutError
from core.worker.fused.install import Fused, fuse
from core.worker.layout import LaidOut, lay_out
from core.worker.loss import SupervisedLoss
from core.worker.model import LoadedModel, decoder_layers, evaluation_mode
from core.worker.template import TokenizedRow

#: How far hidden states of rows laid out may be from those of the rows alone, as a share of their size. Rounding to 16
#: bit stays below a hundredth; a row that sees another one is off by more than a tenth.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
#: Tokens of the rows that this is tried with, and how many of them are a common beginning.
TRIAL_LENGTH, TRIAL_PREFIX = 24, 10


def fuse_layers(config: Config, loaded: LoadedModel) -> Fused:
    """Put the fused parts into a model that is about to be trained. Where its layers are to be compiled, that is only
    the attention: the compiler fuses the rest by itself.

    Args:
        config: Of the run.
        loaded: The model, adapters attached.
    """
    if not config.train.fused_layers:
        return Fused((), 0, False, False)
    return fuse(loaded.model, TRAINED, attention_alone=config.train.compile)


def compile_layers(loaded: LoadedModel, notice: Callable[[str, str, str], None], *, backend: str = "inductor") -> None:
    """Have torch compile the layers of a model when they are first run; one code for all of them and for every length.

    Args:
        loaded: The model, adapters attached.
        notice: Told where there is no compiler: ``notice(code, message, hint)``.
        backend: Torch's compiler.
    """
    reason = _missing_compiler(loaded.device)
    if reason is not None:
        notice("not_compiled", f"The layers are not compiled: {reason}.", "Training goes on, slower.")
        return
    import torch._dynamo

    # What cannot be compiled is run as it is.
    torch._dynamo.config.suppress_errors = True
    for layer in decoder_layers(loaded.model):
        layer.compile(dynamic=True, backend=backend)


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler on this machine"
    return None


def arrange_rows(
    config: Config,
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    fused: Fused,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Decide whether rows lie one behind another, and whether what they begin with alike is computed once.

    Both are tried on the model first.

    Args:
        config: Of the run.
        loaded: The model.
        loss: Of the model; it is told.
        rows: Of the data.
        fused: What has been put into the model.
        autocast: The arithmetic of training.

    Raises:
        UserError: If ``train.packing`` is on and rows could not be kept apart.
    """
    # With dropout or noise, rows with one beginning would have one draw of it.
    drawn = config.method.dropout > 0 or config.method.neftune_alpha is not None
    wanted = config.train.share_prefix and not drawn
    if not config.train.packing and not wanted:
        return
    reason = None if fused.attention else _missing_attention(loaded)
    if reason is None:
        trial = _trial_rows(rows)
        reason = _trial(loaded, loss, trial, autocast)
    if reason is None:
        reason, draws = _trial_in_training(loaded, loss, trial, autocast)
        wanted = wanted and not draws
    if reason is not None and config.train.packing:
        raise UserError(
            f"train.packing is on, and rows that lie one behind another would not be kept apart: {reason}.",
            "Set train.packing = false; rows of like length go together anyway, so that little is padded.",
        )
    loss.share, loss.pack = reason is None and wanted, reason is None and config.train.packing


def _missing_attention(loaded: LoadedModel) -> str:
    causal = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    kind = causal.config._attn_implementation
    return "its attention has code of its own" if kind == "sdpa" else f"the model's attention is {kind}"


@torch.no_grad()
def _trial(
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> str | None:
    """Why laid-out rows would not be what they are alone; None where they are."""
    ids, supervised = collate(rows, 0, loaded.device)
    laid = _laid_out(loaded, rows)
    with evaluation_mode(loaded.model), autocast():
        wanted = loss.hidden(ids, supervised).float()
        try:
            found = loss.hidden_laid_out(laid).float()
        except Exception as error:  # whatever a model makes of arguments it does not know
            first = (str(error).splitlines() or [""])[0]
            return f"the model refuses it ({type(error).__name__}: {first})"
    layers, attended = len(decoder_layers(loaded.model)), len(laid.layout.attended)
    if attended < layers:
        # A convolution or a state runs over the ends of rows, and may do so by less than rounding here.
        return f"{attended} of its {layers} layers have attention that can be told where rows end"
    difference = float((found - wanted).norm() / wanted.norm())
    return None if difference <= TOLERANCE[loaded.dtype] else f"its hidden states would differ by {difference:.1%}"


@torch.no_grad()
def _trial_in_training(
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[str | None, bool]:
    """Why rows cannot be laid out in training, if they cannot; and whether the model draws random numbers there, as one
    with dropout of its own does."""
    before = rng_state()
    was_training = loaded.model.training
    loaded.model.train()
    try:
        with autocast():
            loss.hidden_laid_out(_laid_out(loaded, rows))
    except LayoutError as error:
        return str(error), True
    finally:
        draws = not _is_same(rng_state(), before)
        restore_rng(before)
        loaded.model.train(was_training)
    return None, draws


def _is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether torch's generators are in the same states."""
    pairs = zip(_generators(first), _generators(second), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _generators(state: dict[str, Any]) -> list[torch.Tensor]:
    return [state["torch"], *state.get("cuda", [])]


def _laid_out(loaded: LoadedModel, rows: Sequence[TokenizedRow]) -> LaidOut:
    """The rows of a trial: two behind their common beginning, and one by itself."""
    ids, supervised = collate(rows, 0, torch.device("cpu"))
    groups = [([0, 1], TRIAL_PREFIX), ([2], 0)]
    return lay_out(ids.numpy(), supervised.numpy(), loaded.device, groups=groups)


def _trial_rows(rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """Three short rows of the data's own tokens with one beginning, of different lengths."""
    tokens = np.concatenate([row.input_ids for row in rows[:64]])
    tokens = np.resize(tokens, 4 * TRIAL_LENGTH)
    made = []
    for number in range(1, 4):
        own = tokens[number * TRIAL_LENGTH : (number + 1) * TRIAL_LENGTH - number]
        ids = np.concatenate([tokens[:TRIAL_PREFIX], own[TRIAL_PREFIX:]]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=np.bool_)
        supervised[TRIAL_PREFIX + 2 :] = True
        made.append(TokenizedRow(ids, supervised))
    return made
