"""What is tried on a model before it is trained: whether our way through it gives what its own gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.errors import UserError
from core.worker.batches import collate
from core.worker.layout import lay_out
from core.worker.loss import SupervisedLoss
from core.worker.model import LoadedModel, evaluation_mode
from core.worker.template import TokenizedRow

#: The greatest difference between our logits and the model's own that rounding explains.
LOGIT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1.0, torch.float16: 0.25}
#: How far hidden states of rows laid out may be from those of the rows alone, as a share of their size. Rounding to 16
#: bit stays below a hundredth; a row that sees another one is off by more than a tenth.
LAYOUT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
#: Tokens of the rows that are tried, and how many of them are a common beginning.
LENGTH, PREFIX = 24, 10
#: Two behind their common beginning, and one by itself.
GROUPS = (([0, 1], PREFIX), ([2], 0))


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    logits_differ: float
    """The largest difference between our logits and the model's own."""
    mixed: str | None
    """Why rows laid one behind another would not be what they are alone; None where they are, or were not tried."""


@torch.no_grad()
def try_model(
    loaded: LoadedModel,
    loss: SupervisedLoss,
    rows: Sequence[TokenizedRow],
    autocast: Callable[[], AbstractContextManager[Any]],
    *,
    laid_out: bool,
) -> Trial:
    """Run three short rows through the model in its own way and in ours.

    In evaluation mode, as dropout would make the two differ and take from the random state.

    Args:
        loaded: The model.
        loss: Of the model.
        rows: Of the data, whose tokens are taken.
        autocast: The arithmetic of training.
        laid_out: Whether to try them one behind another, too; see :mod:`core.worker.layout`.
    """
    ids, supervised = collate(_rows(rows), 0, loaded.device)
    with evaluation_mode(loaded.model), autocast():
        difference, states = loss.verify(ids)
        mixed = None
        if laid_out:
            wanted = states[:, :-1][supervised[:, 1:]].float()
            laid = lay_out(ids.cpu().numpy(), supervised.cpu().numpy(), loaded.device, groups=list(GROUPS))
            try:
                found = loss.hidden_laid_out(laid).float()
            except Exception as error:  # whatever a model makes of arguments it does not know
                first = (str(error).splitlines() or [""])[0]
                mixed = f"the model refuses it ({type(error).__name__}: {first})"
            else:
                share = float((found - wanted).norm() / wanted.norm())
                if not share <= LAYOUT_TOLERANCE[loaded.dtype]:
                    mixed = f"its hidden states would differ by {share:.1%}"
    return Trial(difference, mixed)


def check_head(trial: Trial, dtype: torch.dtype, base: str) -> None:
    """Refuse a model whose way from hidden states to logits is not known here.

    Args:
        trial: Of the model.
        dtype: Of its arithmetic.
        base: Its name.

    Raises:
        UserError: If our logits are not the model's own.
    """
    if not trial.logits_differ <= LOGIT_TOLERANCE[dtype]:
        raise UserError(
            f"The output head of {base} works in a way that is not known here "
            f"(logits differ by {trial.logits_differ:.3g}).",
            "Report the model's architecture; training it would go wrong silently.",
        )


def _rows(rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """Three short rows of the data's own tokens with one beginning, of different lengths."""
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
