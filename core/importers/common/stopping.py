"""Early stopping and the best checkpoint, from the keys of the other tools."""

from __future__ import annotations

from core.importers.common.shared import NOTHING_HELD_OUT, is_measured
from core.importers.gaps import Gap
from core.importers.rules import is_one_of
from core.importers.translation import Translation

#: Options that the functions here may set.
STOPPING_OPTIONS = ("eval.patience", "checkpoint.final")
#: The same of :func:`axolotl_watchdog`, and its keys.
WATCHDOG_OPTIONS = ("train.loss_limit", "train.loss_spike_patience", "train.on_loss_spike", "train.loss_spike")
WATCHDOG_KEYS = ("loss_watchdog_threshold", "loss_watchdog_patience")
#: Keys of the best checkpoint in the transformers trainer, which the other tools hand on.
BEST_KEYS = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")

_BEST, _METRIC, _GREATER = BEST_KEYS
_LOSS = ("loss", "eval_loss")


def llama_factory_stopping(work: Translation) -> None:
    """LLaMA-Factory: ``early_stopping_steps`` counts evaluations, whatever its name says, and not steps."""
    patience = _patience(work, "early_stopping_steps")
    _best(work, counts=patience)


def axolotl_stopping(work: Translation) -> None:
    """Axolotl: with ``early_stopping_patience``, the best checkpoint becomes the result, whatever else is said."""
    key = "early_stopping_patience"
    patience = not is_one_of(work.values.get(key), (0,)) and _patience(work, key)
    if work.has(key) and not work.is_done(key):
        work.carry(key, None, reason="As it is here.")
    if patience and not work.boolean(_BEST):
        reason = f"With {key}, Axolotl takes the best step."
        work.change(_BEST, "checkpoint.final", "best", reason)
    _best(work, counts=patience)


def axolotl_watchdog(work: Translation) -> None:
    """Axolotl: a run stops after some steps in a row, three if it is not said, with a loss above a limit."""
    threshold, patience = WATCHDOG_KEYS
    limit, steps = work.number(threshold), work.integer(patience)
    if limit is None:
        if work.has(patience):
            work.carry(patience, None, reason=f"It counts only with {threshold}.")
        return
    work.change(threshold, "train.loss_limit", limit, "The run stops at its last good checkpoint.")
    if "train.loss_limit" in work.settings:
        work.put("train.on_loss_spike", "stop", f"As {threshold} asks.")
        work.put("train.loss_spike", 0.0, f"{threshold} is the only limit.")
    if steps is not None:
        work.carry(patience, "train.loss_spike_patience", steps)


def _patience(work: Translation, key: str) -> bool:
    """Patience, which the trainer counts as it is counted here: evaluations without a new best.

    Returns:
        Whether it was set.
    """
    patience = work.integer(key)
    if patience is None:
        return False
    if not is_measured(work):
        work.drop(key, NOTHING_HELD_OUT)
    elif _is_loss(work):
        work.carry(key, "eval.patience", patience)
    else:
        work.change(key, "eval.patience", patience, f"Counted by the held-out loss. {Gap.BEST_BY_LOSS.sentence}")
    return "eval.patience" in work.settings


def _best(work: Translation, *, counts: bool) -> None:
    """Convert the keys of the best checkpoint.

    Args:
        work: The translation.
        counts: Whether the metric counts for early stopping too.
    """
    wanted = work.boolean(_BEST)
    is_greater = bool(work.boolean(_GREATER))
    if wanted and not is_measured(work):
        work.drop(_BEST, NOTHING_HELD_OUT)
    elif wanted and _is_loss(work) and is_greater:
        work.drop(_BEST, f"{_GREATER} asks for the highest loss. {Gap.BEST_BY_LOSS.sentence}")
    elif wanted and _is_loss(work):
        work.carry(_BEST, "checkpoint.final", "best")
    elif wanted:
        work.change(_BEST, "checkpoint.final", "best", Gap.BEST_BY_LOSS.sentence)
    elif work.has(_BEST):
        work.carry(_BEST, None, reason="As it is here.")
    is_used = counts or bool(wanted)
    for key, is_same in ((_METRIC, _is_loss(work)), (_GREATER, not is_greater)):
        if not work.has(key):
            continue
        if not is_used:
            work.carry(key, None, reason=f"It counts only with {_BEST}.")
        elif is_same:
            work.carry(key, None, reason="As it is here.")
        else:
            work.drop(key, Gap.BEST_BY_LOSS.sentence)


def _is_loss(work: Translation) -> bool:
    """Whether the best step is told by the held-out loss, as it is without a metric."""
    metric = work.text(_METRIC)
    return metric is None or metric.strip().lower() in _LOSS
