"""Choice of the way to fit a run into memory: size of micro-batches, and number of layers whose activations are kept.

A smaller micro-batch costs another dequantization of the weights and thinner matrix products; a recomputed layer costs
another forward pass. The cheaper way depends on the model, the rows and the device; the estimated time decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from core.config.schema import Config
from core.memory.plan import Machine, Plan, Way
from core.memory.weights import movable_experts
from core.models.architecture.architecture import Architecture
from core.units import format_bytes

#: Largest share of the limit for a plan with kept activations, unless all fit at the largest micro-batches: such a plan
#: fills the memory, so that an error of the plan would be an error of the run.
FILLED_SHARE = 0.97
#: The reason why experts are not moved under WSL 2.
_NOT_PINNED = "pinned memory is short under WSL 2, and memory.offload_experts = on uses it anyway"


def choose_way(
    budgets: Sequence[int], kept: tuple[int, int], plan: Callable[[Way], Plan], *, offload: bool = False
) -> Plan:
    """The plan of the shortest estimated step that fits.

    Args:
        budgets: Token budgets to choose from, the largest first.
        kept: Fewest and most layers whose activations may be kept.
        plan: Makes the plan of a way, for a known limit. A smaller budget or fewer kept layers never need more memory.
        offload: Whether checkpointed layer inputs may be offloaded to host memory if nothing fits otherwise.

    Returns:
        The plan with its reason; if nothing fits, that of the least memory.
    """
    fewest, most = kept
    whole = plan(Way(budgets[0], most))

    def explained(found: Plan) -> Plan:
        # Compared with the same budget and more kept layers; or with the same layers and a larger budget.
        fewer = found.kept_layers < most and found.token_budget < budgets[0]
        return _explained(found, plan(Way(found.token_budget, most)) if fewer else whole, budgets[0])

    if whole.fits:
        return explained(whole)
    least = plan(Way(budgets[-1], fewest))
    if least.fits:
        found = [_most_kept(budget, fewest, most, plan) for budget in budgets]
        # Among equal plans the first, with the largest budget.
        return explained(
            min((one for one in found if one is not None), key=lambda one: one.step.seconds, default=least)
        )
    if offload and fewest == 0:
        moved = [plan(Way(budget, 0, offload=True)) for budget in budgets]
        for elsewhere in [*(one for one in moved if one.fits), moved[-1]]:
            if elsewhere.offload and elsewhere.host_fits is not False:
                return explained(elsewhere)
    return explained(least)


def _most_kept(budget: int, fewest: int, most: int, plan: Callable[[Way], Plan]) -> Plan | None:
    """The plan that fits with a budget and as many kept layers as possible, which make the step shortest."""
    found = plan(Way(budget, most))
    if _fits(found):
        return found
    if most == fewest or not _fits(found := plan(Way(budget, fewest))):
        return None
    fits, too_many = fewest, most
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        tried = plan(Way(budget, middle))
        if _fits(tried):
            fits, found = middle, tried
        else:
            too_many = middle
    return found


def _fits(plan: Plan) -> bool:
    room = FILLED_SHARE if plan.kept_layers else 1.0
    return plan.limit_bytes is not None and plan.needed_bytes <= room * plan.limit_bytes


def _explained(found: Plan, other: Plan, first: int) -> Plan:
    """The plan with the reason for its way.

    Args:
        found: The plan.
        other: The plan that would be faster.
        first: The largest budget.
    """
    free, needed = format_bytes(found.limit_bytes), format_bytes(other.needed_bytes)
    if found.way == other.way and not found.checkpointing:
        return replace(found, reason="Activations are kept: there is room for all of them.")
    cut = found.token_budget < first
    if other.checkpointing and not cut:
        return replace(found, reason="Activations are recomputed: memory.gradient_checkpointing = on.")
    batches = f" in micro-batches of up to {found.token_budget:,} tokens" if cut else ""
    otherwise = f"with up to {first:,}" if other.kept_layers == found.kept_layers else "with all of them kept"
    what = f"Activations are {'recomputed' if found.checkpointing else 'kept'}{batches}"
    if 0 < found.kept_layers < found.layers:
        what = f"Activations of {found.kept_layers} of {found.layers} layers are kept, of the others recomputed"
        what += f",{batches}" if cut else ""
    return replace(found, reason=f"{what}: {otherwise} the run would take {needed}, and {free} are free.")


def place_experts(model: Architecture, config: Config, machine: Machine, plan: Callable[[bool], Plan]) -> Plan:
    """The plan with experts placed by ``memory.offload_experts``; with ``auto`` in host memory if the run fits only so.

    Args:
        model: The base model.
        config: Configuration of the run.
        machine: Machine of the run.
        plan: Makes the plan with 4-bit experts in host memory, or on the device.
    """
    movable = machine.kind == "cuda" and movable_experts(model, config)
    wanted = config.memory.offload_experts if movable else "off"
    here = plan(wanted == "on")
    if wanted != "auto" or here.fits is not False:
        return here
    there = plan(True)
    if not there.fits:
        return here
    needed = f"With its experts in the machine's memory the run would take {format_bytes(there.needed_bytes)}"
    if not machine.pins:
        return replace(here, notes=(*here.notes, f"{needed}: {_NOT_PINNED}."))
    if there.host_fits is False:
        short = (
            f"that takes {format_bytes(there.experts_host_bytes)}, and {format_bytes(there.host_free_bytes)} are free"
        )
        return replace(here, notes=(*here.notes, f"{needed}; {short}."))
    return there
