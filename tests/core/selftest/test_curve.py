from __future__ import annotations

import json
import math

from core.selftest.curve import LEAST, MEAN_SHARE, LossCurve, curve_config
from core.selftest.sizes import Sizes
from tests.cases import cases

CURVE = LossCurve((4.0, 3.0, 2.0, 1.0), "here")


def test_the_shipped_curve_falls_and_is_as_long_as_a_self_test() -> None:
    shipped = LossCurve.shipped()
    assert len(shipped.losses) == Sizes().curve_steps == Sizes.of("cuda").curve_steps
    assert shipped.losses[-1] < shipped.losses[0] / 4
    assert "fp32" in shipped.recorded
    assert shipped.deviation(shipped.losses).is_inside


def test_a_shorter_run_is_compared_with_the_beginning() -> None:
    found = CURVE.deviation([4.0, 3.0])
    assert found.is_inside
    assert (found.steps, found.most, found.mean) == (2, 0.0, 0.0)


@cases(
    ("losses", "outside"),
    [
        ([4.2, 3.0, 2.0, 1.0], (1,)),  # the first has no training in it
        ([4.0, 3.9, 2.0, 1.0], ()),
        ([4.0, 4.1, 2.0, 1.0], (2,)),
        ([4.0, 1.9, 2.0, 1.0], (2,)),
        ([4.0, 3.0, 2.0, math.nan], (4,)),
        ([math.inf, 3.0, 2.0, 1.0], (1,)),
    ],
)
def test_losses_outside_of_the_band_are_named(losses: list[float], outside: tuple[int, ...]) -> None:
    found = CURVE.deviation(losses)
    assert found.outside == outside
    assert found.is_inside is (not outside)


def test_a_mean_that_is_off_is_outside_though_every_step_is_not() -> None:
    curve = LossCurve((4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0), "here")
    found = curve.deviation([4.0, *[4.0] * 6])
    assert not found.outside
    assert found.mean > MEAN_SHARE
    assert not found.is_inside


def test_no_steps_prove_nothing() -> None:
    assert not CURVE.deviation([]).is_inside


def test_small_losses_may_differ_by_a_little_in_any_case() -> None:
    curve = LossCurve((4.0, 0.1), "here")
    assert curve.deviation([4.0, 0.1 + 0.9 * LEAST]).is_inside


def test_a_training_that_does_not_learn_is_far_outside() -> None:
    shipped = LossCurve.shipped()
    assert len(shipped.deviation([shipped.losses[0]] * 20).outside) > 10


def test_the_configuration_has_the_same_losses_whatever_its_length() -> None:
    short, long = (curve_config("model", steps, device="cpu") for steps in (4, 20))
    assert short.train.scheduler == "constant"
    assert short.train.warmup == 0
    assert short.train.model_copy(update={"max_steps": 20}) == long.train


def test_sizes_go_through_json() -> None:
    for sizes in (Sizes(), Sizes.of("cuda"), Sizes.of("cuda").smallest()):
        assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes
