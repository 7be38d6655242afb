"""Strategy of a run on several cards: the choice, its reason, and the memory plan of each card with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from core.config.rules.check import check_rules
from core.config.schema import Config
from core.errors import UserError
from core.memory.cards import Cards, Sharing, Strategy, sharing_of
from core.memory.plan import Machine, Plan
from core.memory.planner import Source, make_plan
from core.memory.rows import Rows
from core.memory.weights import movable_experts
from core.models.architecture.architecture import Architecture
from core.units import format_bytes


@dataclass(frozen=True)
class Chosen:
    """The strategy of a run.

    Args:
        sharing: The strategy and its options.
        plan: Memory plan of one card; its host memory is that card's part.
        reason: The reason of the choice, in a sentence.
        rows: Most rows of a step on one card.
        host_free_bytes: Free memory of each machine; None if unknown.
    """

    sharing: Sharing
    plan: Plan
    reason: str
    rows: int
    host_free_bytes: int | None

    @property
    def fits(self) -> bool | None:
        """True if the card and its machine have the memory; None if that of the card is unknown."""
        return None if self.plan.fits is None else self.plan.fits and self.plan.host_fits is not False

    @property
    def unit(self) -> str:
        """The noun for a participant of the run."""
        return "card" if self.plan.device == "cuda" else "process"

    @property
    def strategy(self) -> Strategy:
        """Its name; ``none`` for one process."""
        return self.sharing.strategy

    @property
    def host_bytes(self) -> int:
        """Host memory that a machine needs for all of its cards."""
        return self.plan.on_host_bytes * self.sharing.cards.here


def chosen_strategy(
    architecture: Architecture,
    config: Config,
    machine: Machine,
    rows: Rows | None = None,
    *,
    cards: Cards,
    source: Source = "measured",
) -> Chosen:
    """The strategy of a run: the configured one, or the first that fits on each card.

    Args:
        architecture: The base model.
        config: Configuration of the run, as the user wrote it.
        machine: The smallest card, with the host memory of its whole machine; a CPU's memory is shared by all
            processes.
        rows: Lengths of the training rows; None if unknown.
        cards: The cards of the run.
        source: As for :func:`core.memory.planner.make_plan`.

    Raises:
        UserError: If the strategy does not allow so many cards, or the run cannot be planned.
    """
    wanted = config.distributed.strategy

    def planned(sharing: Sharing, reason: str) -> Chosen:
        part, card = part_of_card(config, sharing), part_of_machine(machine, sharing.cards)
        plan = make_plan(architecture, part, card, rows, sharing=sharing.or_none, source=source)
        return Chosen(sharing, plan, reason, part.train.batch_size, machine.host_bytes)

    if wanted == "none" and cards.number > 1:
        raise UserError(
            f"distributed.strategy is none, and the run would have {cards.number} processes.",
            "Write distributed.strategy = auto, or take one card.",
        )
    if cards.number == 1:
        return planned(Sharing("none"), "One process needs no strategy.")
    if wanted != "auto":
        return planned(sharing_of(config, cards, wanted), f"{wanted}: distributed.strategy says so.")
    whole = planned(sharing_of(config, cards, "replicate"), "")
    unit = whole.unit
    needed, free = format_bytes(whole.plan.needed_bytes), format_bytes(whole.plan.limit_bytes)
    if whole.fits is None:
        return replace(whole, reason=f"replicate: it is not known how much memory a {unit} has.")
    if whole.fits:
        return replace(
            whole, reason=f"replicate: the whole model fits on each card, where it takes {needed} of {free}."
        )
    short = f"a card would need {needed}, and {free} are free"
    if movable_experts(architecture, config):
        return replace(whole, reason=f"replicate: {short}; fsdp2 does not share out experts in 4 bits.")
    named = config.distributed.model_copy(update={"strategy": "fsdp2"})
    if any(found.level == "error" for found in check_rules(config.model_copy(update={"distributed": named}))):
        return replace(whole, reason=f"replicate: {short}; fsdp2 cannot do what this run does.")
    assumed = "; all rows are assumed to have train.max_length tokens" if rows is None else ""
    reason = f"fsdp2: with the whole model {short}{assumed}."
    return planned(sharing_of(config, cards, "fsdp2"), reason)


def part_of_card(config: Config, sharing: Sharing) -> Config:
    """A card's part of a run: its rows of a step, without options that several cards cannot have.

    Gradients have to exist when they are summed over the cards, so that no weight is updated inside backward. Sharded
    weights are neither copied nor offloaded one by one.

    Args:
        config: Configuration of the run.
        sharing: The strategy.
    """
    rows = math.ceil(config.train.batch_size / sharing.cards.number)
    train = config.train.model_copy(update={"batch_size": rows})
    memory = config.memory
    if sharing.cards.number > 1 or sharing.weights:
        memory = memory.model_copy(update={"optimizer_in_backward": "off"})
    if sharing.weights:
        memory = memory.model_copy(update={"keep_dequantized": "off", "offload_experts": "off"})
    return config.model_copy(update={"train": train, "memory": memory})


def part_of_machine(machine: Machine, cards: Cards) -> Machine:
    """A card with its part of its machine's memory.

    Args:
        machine: A card with all of its machine's memory.
        cards: The cards of the run.
    """
    host, limit = machine.host_bytes, machine.limit_bytes
    if machine.kind == "cpu" and limit is not None:
        limit //= cards.here
    return replace(machine, limit_bytes=limit, host_bytes=None if host is None else host // cards.here)
