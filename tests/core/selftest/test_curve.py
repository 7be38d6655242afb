from __future__ import annotations

import math

from core.selftest.curve import LEAST, LossCurve, curve_config
from core.selftest.sizes import Sizes
from tests.cases import cases

CURVE = (4.0, 3.0, 2.0, 1.0)


def test_the_shipped_curve_falls_and_is_as_long_as_a_self_test() -> None:
    shipped = LossCurve.shipped()
    assert len(shipped.losses) == Sizes().curve_steps == Sizes.of("cuda").curve_steps
    assert shipped.losses[-1] < shipped.losses[0] / 4
    assert "fp32" in shipped.recorded
    assert shipped.deviation(shipped.losses).is_inside
    assert len(shipped.deviation([shipped.losses[0]] * 20).outside) > 10, "a training that does not learn"
    short, long = (curve_config("model", steps, device="cpu") for steps in (4, 20))
    assert short.train.model_copy(update={"max_steps": 20}) == long.train, "the same losses whatever its length"


@cases(
    ("curve", "losses", "outside", "is_inside"),
    [
        (CURVE, [4.2, 3.0, 2.0, 1.0], (1,), False),  # the first has no training in it
        (CURVE, [4.0, 3.9, 2.0, 1.0], (), True),
        (CURVE, [4.0, 4.1, 2.0, 1.0], (2,), False),
        (CURVE, [4.0, 1.9, 2.0, 1.0], (2,), False),
        (CURVE, [4.0, 3.0, 2.0, math.nan], (4,), False),
        (CURVE, [math.inf, 3.0, 2.0, 1.0], (1,), False),
        # A shorter run is compared with the beginning; no steps prove nothing.
        (CURVE, [4.0, 3.0], (), True),
        (CURVE, [], (), False),
        # Small losses may differ by a little in any case.
        ((4.0, 0.1), [4.0, 0.1 + 0.9 * LEAST], (), True),
        # A mean that is off is outside though every step is not.
        ((4.0, *[3.0] * 6), [4.0] * 7, (), False),
    ],
)
def test_losses_outside_of_the_band_are_named(
    curve: tuple[float, ...], losses: list[float], outside: tuple[int, ...], is_inside: bool
) -> None:
    found = LossCurve(curve, "here").deviation(losses)
    assert (found.outside, found.is_inside, found.steps) == (outside, is_inside, len(losses))
