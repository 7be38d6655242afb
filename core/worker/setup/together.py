"""What the processes of a run settle together before they train: the strategy, who prepares the base, 16-bit layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.config.schema import Config
from core.errors import UserError
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.replicate import Replicate
from core.worker.distributed.strategy import Strategy
from core.worker.model.starter import resolve_base
from core.worker.process.recorder import Recorder
from core.worker.setup.kept_layers import settle_kept_layers
from core.worker.setup.preparation import Prepared


def make_strategy(config: Config, ranks: Ranks) -> Strategy:
    """The strategy of a run.

    Args:
        config: Of the run.
        ranks: Its processes.

    Raises:
        UserError: If it refuses several processes.
    """
    wanted = config.distributed.strategy
    if ranks.is_single or wanted in ("auto", "replicate"):
        return Replicate(ranks)
    raise UserError(f"distributed.strategy is {wanted}, with {ranks.count} processes.", "Set it to replicate.")


def first_goes_ahead(config: Config, recorder: Recorder, check_stop: Callable[[], None], ranks: Ranks) -> None:
    """Let the first process prepare a base that is not ready yet, while the others wait: it is made once.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If there is no such model.
    """
    if ranks.is_single:
        return
    if ranks.is_first:
        resolve_base(config.model.base, recorder.reporter("preparing_model", check_stop))
    ranks.broadcast({})


def agree_kept_layers(
    config: Config,
    prepared: Prepared,
    device: torch.device,
    recorder: Recorder,
    check_stop: Callable[[], None],
    ranks: Ranks,
) -> Config:
    """As :func:`~core.worker.setup.kept_layers.settle_kept_layers`, by the memory of the first process, for all.

    Raises:
        RankLostError: If another process does not answer.
        UserError: If the base cannot be measured.
    """
    if ranks.is_first:
        config = settle_kept_layers(config, prepared, device, recorder, check_stop)
        ranks.broadcast({"keep_16bit": config.model.keep_16bit})
        return config
    kept = ranks.broadcast()["keep_16bit"]
    return config.model_copy(update={"model": config.model.model_copy(update={"keep_16bit": kept})})
