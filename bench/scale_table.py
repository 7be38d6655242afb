"""Several cards on paper, as tables: ``python bench/scale_table.py``; ``--write`` updates docs/several-cards.md.

For each model and arrangement of cards: the bytes that a card sends in a step and its memory, by the memory plan, and
what the step takes by the estimated rates of the card and assumed rates of the links. Arithmetic only; nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_checks.models import EIGHT, ModelShape
from core.config.schema import Config
from core.memory.cards import Cards
from core.memory.plan import Machine
from core.memory.rows import Rows
from core.memory.strategy import Chosen, chosen_strategy
from core.models.architecture.architecture import Architecture, read_architecture
from core.units import format_bytes

PAGE = ROOT / "docs" / "several-cards.md"
BEGIN, END = "<!-- bench/scale_table.py writes from here -->\n", "<!-- to here -->\n"

#: The card: its rates are the estimates of ``core/memory/step_time.py``.
CARD, FREE = "NVIDIA GeForce RTX 4090", 23 << 30
#: Rows of a step and their tokens, all of them learned.
ROWS, LENGTH = 16, 2048
#: Bytes a second that a card sends while it receives as many. Cards for the home have no way to one another but over
#: host memory, so that a byte takes the bus twice: half of the 20 GB/s assumed for copies. Of Ethernet 94 in 100 bits
#: are data, in frames of 1,500 bytes.
BUS, TEN_GIGABIT, GIGABIT = 10e9, 0.94 * 10e9 / 8, 0.94 * 1e9 / 8

MODELS: dict[str, ModelShape] = {
    "8B": EIGHT,
    "32B": ModelShape("32b", 152_064, 5120, 27_648, 64, 40, 8),
    "70B": ModelShape("70b", 128_256, 8192, 28_672, 80, 64, 8),
}


@dataclass(frozen=True)
class Arrangement:
    """Cards, and the slowest link between them."""

    name: str
    cards: Cards
    link: float


ONE = Arrangement("1 card", Cards(1), BUS)
ARRANGEMENTS = [
    Arrangement("2 cards", Cards(2), BUS),
    Arrangement("4 cards", Cards(4), BUS),
    Arrangement("8 cards", Cards(8), BUS),
    Arrangement("2 machines with 1 card, 10 Gbit/s", Cards(1, 2), TEN_GIGABIT),
    Arrangement("2 machines with 1 card, 1 Gbit/s", Cards(1, 2), GIGABIT),
    Arrangement("2 machines with 4 cards, 10 Gbit/s", Cards(4, 2), TEN_GIGABIT),
    Arrangement("2 machines with 4 cards, 1 Gbit/s", Cards(4, 2), GIGABIT),
]


@dataclass(frozen=True)
class Step:
    """An optimizer step of all cards.

    Args:
        chosen: The plan of a card.
        computing: Seconds that a card computes.
        sending: Seconds that its bytes are on the slowest link.
    """

    chosen: Chosen
    computing: float
    sending: float

    @property
    def seconds(self) -> float:
        """Its duration: gathered layers travel beside what is computed, summed gradients after it."""
        if self.chosen.sharing.weights:
            return max(self.computing, self.sending)
        return self.computing + self.sending

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all cards."""
        return ROWS * LENGTH / self.seconds


def plan_step(model: Architecture, arrangement: Arrangement, strategy: str, offload: str = "none") -> Step:
    """The step of a model on cards that share it by a strategy.

    Args:
        model: The base model.
        arrangement: The cards.
        strategy: As ``distributed.strategy``.
        offload: As ``distributed.offload``.
    """
    config = Config.model_validate(
        {
            "data": {"train": "x"},
            "train": {"batch_size": ROWS, "max_length": LENGTH},
            "distributed": {"strategy": "auto" if arrangement is ONE else strategy, "offload": offload},
        }
    )
    rows = Rows([(LENGTH, ROWS)])
    machine = Machine("cuda", FREE, device=CARD)
    chosen = chosen_strategy(model, config, machine, rows, cards=arrangement.cards)
    sent = chosen.plan.wire_bytes
    # A share that is in host memory goes over the bus once for the gathers that send it to each of the other cards.
    copied = sent / (arrangement.cards.number - 1) if chosen.sharing.offloads_weights else 0
    return Step(chosen, chosen.plan.step.seconds, sent / arrangement.link + copied / BUS)


def cells(step: Step, alone: Step) -> str:
    """The cells of a model: memory, bytes sent, seconds, speed and how many times that of one card it is."""
    plan = step.chosen.plan
    if not plan.fits:
        return f"{format_bytes(plan.needed_bytes)}: does not fit | – | – | –"
    times = f" ({alone.seconds / step.seconds:.1f}×)" if alone.chosen.fits else ""
    sent = f"{format_bytes(plan.wire_bytes)}" if plan.wire_bytes else "–"
    seconds = f"{step.computing:.1f} + {step.sending:.1f}" if plan.wire_bytes else f"{step.computing:.1f}"
    if step.chosen.sharing.weights:
        seconds = f"{step.computing:.1f} ∥ {step.sending:.1f}"
    return f"{format_bytes(plan.needed_bytes)} | {sent} | {seconds} | {_rounded(step.tokens_per_second)}{times}"


def _rounded(number: float) -> str:
    """Two digits and no more: the estimate has not more."""
    return f"{round(number, -2 if number >= 1000 else -1):,.0f}"


def tables() -> Iterator[str]:
    """Lines of the tables."""
    for strategy in ("replicate", "fsdp2"):
        yield from (f"### {strategy}", "")
        yield "| QLoRA, rank 16 | cards | memory of a card | sent by a card in a step | seconds | tokens/s |"
        yield "|---|---|---:|---:|---:|---:|"
        for name, shape in MODELS.items():
            yield from rows_of(name, read_architecture(shape.config, name), strategy)
        yield ""


def rows_of(name: str, model: Architecture, strategy: str) -> Iterator[str]:
    """Rows of a model; one where a card is too small whatever their number.

    Args:
        name: Its name.
        model: The model.
        strategy: As ``distributed.strategy``.
    """
    alone = plan_step(model, ONE, "auto")
    yield f"| {name} | {ONE.name} | {cells(alone, alone)} |"
    for arrangement in ARRANGEMENTS:
        step, told = plan_step(model, arrangement, strategy), arrangement.name
        if not step.chosen.fits and strategy == "replicate":
            yield f"| {name} | any number | {cells(step, alone)} |"
            return
        if not step.chosen.fits:
            step = plan_step(model, arrangement, strategy, "all")
            told += f'; `offload = "all"`, {format_bytes(step.chosen.host_bytes)} of each machine'
        yield f"| {name} | {told} | {cells(step, alone)} |"


def short_table() -> Iterator[str]:
    """Lines of the table on the page."""
    two, four, _, ten, one, *_ = ARRANGEMENTS
    yield from (
        "| QLoRA, rank 16 | strategy | memory of a card | sent in a step | seconds | tokens/s |",
        "|---|---|---:|---:|---:|---:|",
    )
    for name, arrangement, strategy, offload in (
        ("8B", ONE, "auto", "none"),
        ("8B", two, "replicate", "none"),
        ("8B", ten, "replicate", "none"),
        ("8B", one, "replicate", "none"),
        ("8B", ten, "fsdp2", "none"),
        ("32B", four, "fsdp2", "none"),
        ("70B", two, "fsdp2", "all"),
        ("70B", four, "fsdp2", "none"),
    ):
        model = read_architecture(MODELS[name].config, name)
        step, alone = plan_step(model, arrangement, strategy, offload), plan_step(model, ONE, "auto")
        how = (
            "–"
            if arrangement is ONE
            else strategy
            + (f", offloaded: {format_bytes(step.chosen.host_bytes)} of the machine" if offload == "all" else "")
        )
        yield f"| {name}, {arrangement.name} | {how} | {cells(step, alone)} |"


def page(text: str) -> str:
    """The page with its table written anew.

    Args:
        text: The page.

    Raises:
        ValueError: If it has no place for the table.
    """
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:before] + "\n".join(["", *short_table(), "", ""]) + text[after:]


def main() -> None:
    """Print all tables, or write the short one into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the short table into docs/several-cards.md")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
