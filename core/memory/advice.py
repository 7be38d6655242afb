"""Memory advice: changes that make a run fit, or use its free memory; each is planned again to check it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from core.config.derived import updates_in_backward
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.memory.cards import Sharing, sharing_of
from core.memory.plan import Machine, Plan
from core.memory.planner import Source, make_plan
from core.memory.rows import Rows
from core.memory.weights import movable_experts
from core.models.architecture.architecture import Architecture
from core.units import format_bytes

#: Most pieces of advice.
ANSWERS = 2
#: Most pairs of changes tried, so that the answer is immediate.
PAIRS = 40
#: Shortest row length advised, in tokens.
SHORTEST = 256
#: Free share of the limit from which advice spends memory.
ROOM = 0.15


@dataclass(frozen=True)
class Advice:
    """Changes that make a run fit, or make it faster.

    Args:
        changes: ``section.key`` to its new value.
        cost: Their cost or gain, as a sentence.
        saves_bytes: Memory saved against the plan; negative if more is used.
        total_bytes: Peak with the changes.
        fits: Whether the run fits then.
        is_rough: Whether the bytes follow from rough bounds, as the model has not been measured with the changes.
    """

    changes: dict[str, Any]
    cost: str
    saves_bytes: int
    total_bytes: int
    fits: bool
    is_rough: bool = False

    @property
    def text(self) -> str:
        """The advice in one line."""
        changes = " and ".join(f"{name} = {_shown(value)}" for name, value in self.changes.items())
        verb = "saves" if self.saves_bytes >= 0 else "takes"
        outcome = "" if self.fits else ", which is not enough"
        return f"{changes} {verb} {format_bytes(abs(self.saves_bytes))}{outcome}. {self.cost}"


def advise(
    architecture: Architecture,
    config: Config,
    machine: Machine,
    rows: Rows | None,
    plan: Plan,
    sharing: Sharing | None = None,
    source: Source = "measured",
) -> tuple[Advice, ...]:
    """Up to two pieces of advice on a plan.

    Args:
        architecture: As for :func:`~core.memory.planner.make_plan`.
        config: As for that function.
        machine: As for that function.
        rows: As for that function.
        plan: Its result.
        sharing: As for that function.
        source: As for that function. With ``measured``, changes that seem to suffice are measured if they have not
            been, which blocks for seconds each.

    Returns:
        If it does not fit: the cheapest single changes that make it fit; if none does, the smallest combination; if
        nothing suffices, all of them together with ``fits`` false. If it fits with room to spare: changes that use that
        room, if any. Empty if the limit is unknown.
    """
    if plan.limit_bytes is None:
        return ()
    adviser = _Adviser(architecture, config, machine, rows, plan, sharing, source)
    return tuple(adviser.make_faster() if plan.fits else adviser.make_fit())


@dataclass
class _Adviser:
    architecture: Architecture
    config: Config
    machine: Machine
    rows: Rows | None
    plan: Plan
    sharing: Sharing | None
    source: Source

    def make_fit(self) -> list[Advice]:
        single: list[Advice] = []
        helpful: list[tuple[dict[str, Any], str]] = []
        for changes, cost in self._candidates():
            advice = self._try(changes, cost)
            if advice is None or advice.saves_bytes <= 0:
                continue
            if advice.fits:
                if any(other.changes.keys() == changes.keys() for other in single):
                    continue  # the smaller change of the same option suffices
                single.append(advice)
                if len(single) == ANSWERS:
                    return single
            helpful.append((changes, cost))
        if single:
            return single
        if (pair := self._pair(helpful)) is not None:
            return [pair]
        together: dict[str, Any] = {}
        costs: list[str] = []
        best: Advice | None = None
        for changes, cost in helpful:
            tried = self._try({**together, **changes}, _joined([*costs, cost]))
            if tried is None or (best is not None and tried.saves_bytes <= best.saves_bytes):
                continue
            costs.append(cost)
            together |= changes
            best = tried
            if best.fits:
                return [self._without_needless(best, {name: each for changes, each in helpful for name in changes})]
        return [replace(best, cost=f"{best.cost} Choose a smaller base model.")] if best is not None else []

    def _pair(self, helpful: list[tuple[dict[str, Any], str]]) -> Advice | None:
        """The cheapest pair of changes that makes it fit."""
        pairs = ((first, second) for later, second in enumerate(helpful) for first in helpful[:later])
        others = (pair for pair in pairs if pair[0][0].keys() != pair[1][0].keys())
        for (first, first_cost), (second, second_cost) in islice(others, PAIRS):
            advice = self._try({**first, **second}, _joined([first_cost, second_cost]))
            if advice is not None and advice.fits:
                return advice
        return None

    def make_faster(self) -> list[Advice]:
        plan = self.plan
        by_need = self.config.memory.gradient_checkpointing == "auto" and not plan.offload
        if not plan.checkpointing or by_need or self.config.memory.gradient_checkpointing == "off":
            return []  # by need the fastest way that fits was chosen
        room = (1 - ROOM) * (plan.limit_bytes or 0)
        # Offloading on demand is not used if there is room.
        asked = self.config.memory.activation_offload == "on"
        stay: dict[str, Any] = {"memory.activation_offload": "auto"} if asked else {}
        kept = {"memory.gradient_checkpointing": "off", **stay}, "Steps take about a quarter less time."
        back = stay, "Nothing is moved to the machine's memory and back."
        for changes, gain in (kept, back):
            advice = self._try(changes, gain) if changes else None
            # The need-based choice leaves a margin already.
            chosen = changes is stay and self.config.memory.gradient_checkpointing == "auto"
            if advice is not None and advice.fits and (chosen or advice.total_bytes <= room):
                return [advice]
        return []

    def _without_needless(self, advice: Advice, costs: Mapping[str, str]) -> Advice:
        """The advice without changes that are not needed for it to fit."""
        for name in list(advice.changes):
            fewer = {key: value for key, value in advice.changes.items() if key != name}
            tried = self._try(fewer, _joined(costs[key] for key in fewer))
            if tried is not None and tried.fits:
                advice = tried
        return advice

    def _try(self, changes: Mapping[str, Any], cost: str) -> Advice | None:
        tried = self._plan_with(changes, "known")
        if tried is None:
            return None
        excess = self._excess if tried.is_rough else 0
        if tried.is_rough and self.source == "measured" and tried.needed_bytes - excess <= (tried.limit_bytes or 0):
            measured = self._plan_with(changes, "measured")
            if measured is None:
                return None
            tried, excess = measured, 0
        more = tried.offload > self.plan.offload or any(
            getattr(tried, name) > getattr(self.plan, name) for name in ("experts_host_bytes", "shares_host_bytes")
        )
        if more and tried.host_fits is False:
            return None
        total = tried.total_bytes - excess
        # A rough bound that does not fit proves nothing; if it fits, the plan fits.
        fits = bool(tried.fits) and tried.host_fits is not False
        return Advice(dict(changes), cost, self.plan.total_bytes - total, total, fits, tried.is_rough)

    def _plan_with(self, changes: Mapping[str, Any], source: Source) -> Plan | None:
        """The plan with some options changed; None if there is none."""
        config, sharing = changed(self.config, changes), self.sharing
        if sharing is not None:
            sharing = sharing_of(config, sharing.cards, sharing.strategy)
        try:
            return make_plan(self.architecture, config, self.machine, self.rows, sharing=sharing, source=source)
        except UserError:
            return None  # no row is left, or the model cannot be measured

    @cached_property
    def _excess(self) -> int:
        """Bytes by which the plan's rough bound exceeds its measurement."""
        bound = None if self.plan.is_rough else self._plan_with({}, "rough")
        return 0 if bound is None else max(bound.total_bytes - self.plan.total_bytes, 0)

    def _candidates(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Candidate changes with their costs, the cheapest first."""
        config, plan = self.config, self.plan
        if plan.micro_batch.rows > 1 and not updates_in_backward(config):
            for rows in _halves(plan.micro_batch.rows, 1):
                yield {"train.micro_batch_size": rows}, "The result is the same; many short rows take longer."
        if not plan.checkpointing:
            yield {"memory.gradient_checkpointing": "on"}, "The result is the same; steps take about a quarter longer."
        if plan.device == "cuda" and not plan.offload:
            changes = {"memory.activation_offload": "on"}
            if config.memory.gradient_checkpointing == "off":
                changes["memory.gradient_checkpointing"] = "on"
            yield changes, "The result is the same; the layers' inputs go to the machine's memory and back."
        yield from self._to_host()
        if config.train.optimizer == "adamw":
            yield {"train.optimizer": "adamw_8bit"}, "The moments are rounded to 8 bit."
        if config.train.precision == "fp32" and (plan.device == "cuda" or self.machine.bf16):
            yield {"train.precision": "bf16"}, "Products are rounded to 8 bits of mantissa."
        if config.method.name in WEIGHT_METHODS:
            yield from self._for_weights()
            return
        if config.method.dropout:
            yield {"method.dropout": 0.0}, "Nothing is dropped from the adapters' inputs."
        if config.method.name == "lora":
            yield {"method.name": "qlora"}, "The base is rounded to 4 bit, and steps take longer."
        if config.method.dora:
            yield {"method.dora": False}, "Plain LoRA, which learns a little less at low rank."
        if config.method.init == "pissa":
            yield {"method.init": "default"}, "The adapters begin without effect, and find their directions themselves."
        for rank in (64, 32, 16, 8):
            if rank < config.method.rank:
                yield {"method.rank": rank}, "The adapters hold less."
        yield from self._shorter()

    def _to_host(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Weights and optimizer states moved to the machine's memory."""
        sharing, plan = self.sharing, self.plan
        if sharing is not None and sharing.shares and sharing.offload != "all":
            # FSDP2 moves all that is shared out.
            wanted = ["optimizer"] if sharing.strategy == "deepspeed" and sharing.offload == "none" else []
            for offload in [*wanted, *(["all"] if sharing.weights else [])]:
                yield {"distributed.offload": offload}, "The result is the same; steps take longer."
        is_shared = sharing is not None and sharing.weights
        movable = plan.device == "cuda" and not plan.experts_host_bytes and not is_shared
        if movable and movable_experts(self.architecture, self.config):
            how = "auto" if self.machine.pins else "on"
            yield (
                {"memory.offload_experts": how},
                "The result is the same; the experts come from the machine's memory for each micro-batch.",
            )

    def _for_weights(self) -> Iterator[tuple[dict[str, Any], str]]:
        config, plan = self.config, self.plan
        if updates_in_backward(config):
            for rows in _halves(plan.micro_batch.rows, 1):
                yield {"train.batch_size": rows}, "A step has fewer rows, so it is noisier."
        elif self.sharing is None:
            yield (
                {"memory.optimizer_in_backward": "on", "train.micro_batch_size": None, "train.max_grad_norm": 0.0},
                "Each weight is updated inside backward; gradients are not clipped.",
            )
        yield from self._shorter()
        yield {"method.name": "lora"}, "Adapters are trained instead of the weights."
        yield {"method.name": "qlora"}, "Adapters are trained on a base that is rounded to 4 bit."

    def _shorter(self) -> Iterator[tuple[dict[str, Any], str]]:
        done = {"drop": "dropped", "truncate": "cut"}.get(self.config.data.overlong, "refused")
        for length in _halves(self.plan.micro_batch.length, SHORTEST):
            yield {"train.max_length": length}, f"Longer rows are {done}."


def _halves(value: int, least: int) -> Iterator[int]:
    """The half of a value, the half of that, and so on."""
    while (value := value // 2) >= least:
        yield value


def _joined(costs: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(costs))


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with some options changed."""
    sections: dict[str, Any] = {}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        before = sections.get(section, getattr(config, section))
        sections[section] = before.model_copy(update={key: value})
    return config.model_copy(update=sections)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
