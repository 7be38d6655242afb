"""Cards of a run: how many there are, and what of a model each of them holds under a strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from core.config.schema import WEIGHT_METHODS, Config, DistributedSection

Strategy = Literal["none", "replicate", "fsdp2", "deepspeed"]
Offload = Literal["none", "optimizer", "all"]

#: Stage of ZeRO from which weights are shared out.
WEIGHTS_STAGE = 3


@dataclass(frozen=True)
class Cards:
    """Cards of a run; on a CPU, its processes.

    Args:
        here: Cards of each machine.
        machines: Number of machines.
    """

    here: int = 1
    machines: int = 1

    @property
    def number(self) -> int:
        """All cards, one process on each."""
        return self.here * self.machines


def cards_of(section: DistributedSection, visible: int = 1) -> Cards:
    """The cards that a configuration asks for.

    Args:
        section: Its section ``distributed``.
        visible: Cards of this machine, for ``gpus = "all"``.
    """
    machines = 1 + len(section.other_hosts)
    named = section.named_gpus
    found = max(visible, 1) if "all" in named else len(named)
    return Cards(section.processes or found or 1, machines)


@dataclass(frozen=True)
class Sharing:
    """A strategy, and what of the run's states each card has a share of.

    Args:
        strategy: The strategy.
        cards: The cards of the run.
        stage: Stage of ZeRO; counts with ``deepspeed`` alone.
        offload: What is kept in host memory; counts where something is shared out. FSDP2 moves all of it or nothing.
        adapters: Whether adapters are trained, which FSDP2 leaves whole on every card, as what is frozen outside
            of the layers.
    """

    strategy: Strategy
    cards: Cards = Cards()
    stage: int = 2
    offload: Offload = "none"
    adapters: bool = False

    @property
    def or_none(self) -> Sharing | None:
        """This; None where nothing is shared."""
        return None if self.strategy == "none" else self

    @property
    def optimizer(self) -> bool:
        """Whether optimizer states are shared out."""
        return self.strategy == "deepspeed" or (self.strategy == "fsdp2" and not self.adapters)

    @property
    def gradients(self) -> bool:
        """Whether gradients are shared out: those of adapters, which are small, by stage 3 alone, so that a pass can be
        run again by each card for itself."""
        return self.optimizer and (self.strategy == "fsdp2" or self.stage > (2 if self.adapters else 1))

    @property
    def weights(self) -> bool:
        """Whether weights are shared out, and gathered layer by layer."""
        return self.strategy == "fsdp2" or (self.strategy == "deepspeed" and self.stage >= WEIGHTS_STAGE)

    @property
    def shares(self) -> bool:
        """Whether anything is shared out."""
        return self.optimizer or self.weights

    @property
    def offloads_states(self) -> bool:
        """Whether optimizer states are in host memory."""
        return self.optimizer and self.offload != "none"

    @property
    def offloads_weights(self) -> bool:
        """Whether the shares of the weights are in host memory."""
        return self.weights and (self.offload == "all" or (self.strategy == "fsdp2" and self.offload != "none"))

    def of_update(self, size: float) -> float:
        """Bytes that the update of a tensor takes for a while on the card.

        Args:
            size: The same on a card that updates all of it.
        """
        if self.offloads_states:
            return 0.0
        return size / self.cards.number if self.optimizer else size

    def share(self, size: int) -> int:
        """The share of one card, in the same unit."""
        return math.ceil(size / self.cards.number)


def sharing_of(config: Config, cards: Cards, strategy: Strategy) -> Sharing:
    """The strategy with the options that go with it.

    Args:
        config: Configuration of the run.
        cards: The cards of the run.
        strategy: The strategy.
    """
    section = config.distributed
    adapters = config.method.name not in WEIGHT_METHODS
    return Sharing(strategy, cards, section.zero_stage, section.offload, adapters)
