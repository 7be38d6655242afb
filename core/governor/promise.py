"""Promise of a plan for the night; a module of its own, as every reader of events imports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The forecast end and energy of the night, beside the first promise; the fields of the event ``night``."""

    cause: str
    """Reason of the plan: ``measured``, ``given_up``, ``taken_up``, ``slower``, ``faster``, ``changed`` or
    ``progress``."""
    finish: float
    """Expected end, Unix seconds."""
    promised_finish: float
    duty: float
    quiet_duty: float
    deadline: float | None = None
    """The wished end, Unix seconds."""
    energy_kwh: float | None = None
    """Expected energy of the whole run since this start."""
    promised_energy_kwh: float | None = None
    used_kwh: float | None = None
    """Energy used so far."""
    energy_limit_kwh: float | None = None
    least_kwh: float | None = None
    """The least energy of any plan, if the energy budget is missed."""
    nearest_deadline: float | None = None
    """The replacement of a dropped deadline, Unix seconds; None if it stands."""
    nearest_energy_kwh: float | None = None
    """The replacement of a dropped energy budget; None if it stands."""
