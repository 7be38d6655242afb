"""How well the governor holds, and what it costs.

``python bench/governor.py`` holds a temperature on models of cards (first order, with noise, whole degrees and readings
that are two seconds old), disturbs them, and prints how far off it is two minutes later, how long it takes to be within
2 °C for good, and how much slower than it had to be it was. Then it measures, in this process, a rest at full duty
(which every micro-batch pays) and a look of the governor's thread (one a second). No device is needed. Values go to
``bench/results/governor-DATE.json``.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.config.schema import Config
from core.governor.holds import TemperatureHold
from core.governor.limits import FLOOR
from core.hardware.sampler import Sampler
from core.worker.process.control import Controls
from core.worker.process.governor import Governor, Throttle
from tests.core.governor.card_model import CardModel

LIMIT = 75.0
#: The cards: °C per watt, seconds, and °C of the room.
RESISTANCES, TAUS, ROOMS = (0.1, 0.15, 0.2, 0.3), (15.0, 40.0, 90.0, 200.0, 300.0), (18.0, 30.0)
#: Seconds before and after a disturbance, and those that it may take.
BEFORE, AFTER, SETTLING = 900, 900, 120


@dataclass(frozen=True)
class Held:
    """Card with one disturbance."""

    resistance: float
    tau: float
    room: float
    disturbance: str
    overshoot_c: float
    """Above the limit when it first gets there."""
    peak_c: float
    """Above the limit after the disturbance."""
    settling_s: int
    """Seconds until it is within 2 °C for good."""
    error_c: float
    """The most that it is off afterwards, from two minutes on."""
    lost_duty: float
    """Duty below what the card could have had, from two minutes on."""


def cards() -> Iterator[Held]:
    """Every card that needs slowing after its disturbance, and can be held by it."""
    for resistance, tau, room in itertools.product(RESISTANCES, TAUS, ROOMS):
        for disturbance in ("room +8 °C", "fan: resistance x1.3"):
            card = CardModel(resistance=resistance, tau=tau, ambient=room)
            held, duty = TemperatureHold(LIMIT), 1.0
            first, duty = run(card, held, BEFORE, duty)
            if disturbance.startswith("room"):
                card.ambient += 8.0
            else:
                card.resistance *= 1.3
            wanted = card.duty_for(LIMIT)
            if not FLOOR + 0.03 < wanted < 1.0 or CardModel(resistance, tau, room).duty_for(LIMIT) < FLOOR + 0.03:
                continue
            told, _ = run(card, held, AFTER, duty)
            off = [off_limit(warm, used) for warm, used in told]
            late = told[SETTLING:]
            yield Held(
                resistance,
                tau,
                room,
                disturbance,
                overshoot_c=round(max(0.0, max(warm for warm, _ in first) - LIMIT), 2),
                peak_c=round(max(0.0, max(warm for warm, _ in told) - LIMIT), 2),
                settling_s=max((second for second, error in enumerate(off) if error > 2.0), default=0),
                error_c=round(max(off[SETTLING:]), 2),
                lost_duty=round(wanted - statistics.mean(used for _, used in late), 3),
            )


def run(card: CardModel, held: TemperatureHold, seconds: int, duty: float) -> tuple[list[tuple[float, float]], float]:
    """Temperature and duty at each second, and the last duty."""
    told = []
    for _ in range(seconds):
        card.run(1.0, duty)
        duty = held.observe(card.moment, card.reading(), duty)
        told.append((card.temperature, duty))
    return told, duty


def off_limit(warm: float, duty: float) -> float:
    """Degrees above the limit, or below it while it is slowed."""
    return max(warm - LIMIT, LIMIT - warm if duty < 0.97 else 0.0, 0.0)


def nanoseconds_of_a_rest(duty: float, calls: int = 200_000) -> float:
    """Nanoseconds of a call at full duty: the median of ten rounds."""
    throttle = Throttle(Controls(), duty)
    rounds = []
    for _ in range(10):
        began = time.perf_counter_ns()
        for _ in range(calls):
            throttle.rest()
        rounds.append((time.perf_counter_ns() - began) / calls)
    return statistics.median(rounds)


def milliseconds_of_a_look(looks: int = 200) -> float:
    """Processor time of one look with every limit set that a CPU can keep: the median."""
    config = Config.model_validate(
        {
            "data": {"train": "x"},
            "hardware": {"host_memory_limit_percent": 100.0, "disk_free_min_gb": 0.0, "temperature_limit_c": 90.0},
            "night": {"deadline": "07:00", "quiet_hours": "23:00-07:00", "quiet_power_w": 100.0},
        }
    )
    controls = Controls()
    governor = Governor(
        config,
        meters=Sampler(),
        controls=controls,
        throttle=Throttle(controls),
        tell=lambda _: None,
        notice=lambda *_: None,
        directory=Path(tempfile.gettempdir()),
        is_paused=lambda: False,
    )
    spent = []
    for _ in range(looks):
        began = time.process_time()
        governor._look()
        spent.append(1000 * (time.process_time() - began))
    return statistics.median(spent)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, default=1.0, help="seconds of an optimizer step")
    parser.add_argument("--micro-batches", type=int, default=4, help="of an optimizer step")
    args = parser.parse_args()
    found = list(cards())
    for name in ("overshoot_c", "peak_c", "settling_s", "error_c", "lost_duty"):
        values = sorted(getattr(item, name) for item in found)
        p95 = values[int(0.95 * (len(values) - 1))]
        print(f"{name:12} median {statistics.median(values):6.2f}  p95 {p95:6.2f}  worst {values[-1]:6.2f}")
    rest, look = nanoseconds_of_a_rest(1.0), milliseconds_of_a_look()
    off = args.micro_batches * rest / (args.step * 1e9)
    on = off + look / 1000
    print(f"{len(found)} cards; a rest at full duty {rest:.0f} ns, a look {look:.2f} ms of processor time")
    print(f"of a step of {args.step:g} s: {off:.6%} off, {on:.3%} of one core at full duty")
    target = ROOT / "bench" / "results" / f"governor-{datetime.date.today()}.json"
    result = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "limit_c": LIMIT,
        "rest_ns": round(rest, 1),
        "look_ms": round(look, 3),
        "cards": [asdict(item) for item in found],
    }
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
