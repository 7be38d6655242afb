"""The arrangement of the panes, as functions of the size of the terminal."""

from __future__ import annotations

import itertools

from textual.geometry import Region, Size

from tests.cases import cases
from tui.main_screen import companions, direction, places, room

NAMES = ("data", "config", "train", "chat", "runs")


def test_the_room_follows_from_both_dimensions() -> None:
    sizes = {(80, 24): 1, (119, 60): 1, (120, 29): 1, (120, 30): 2, (159, 60): 2, (300, 44): 2, (160, 45): 4}
    assert {size: room(*size) for size in sizes} == sizes


@cases("live", [False, True])
@cases("places_", [1, 2, 4])
def test_the_pane_asked_for_is_in_sight_and_a_live_run_beside_it(places_: int, live: bool) -> None:
    for name in NAMES:
        shown = companions(name, places_, live=live)
        assert name in shown
        assert len(shown) <= places_
        if live and places_ > 1:
            assert "train" in shown


def test_the_run_keeps_its_place_beside_whatever_is_asked_for() -> None:
    assert {companions(name, 2, live=True)[0] for name in NAMES} == {"train"}


def test_the_shape_of_the_terminal_decides_how_two_panes_share_it() -> None:
    assert direction(("train", "chat"), 120, 34) == "beside"
    assert direction(("train", "chat"), 120, 60) == "over"
    assert direction(("train", "chat"), 200, 44) == "beside"
    assert direction(("train", "runs"), 120, 34) == "over"


@cases(("width", "height"), [(60, 18), (120, 28), (121, 33), (160, 43), (201, 48), (400, 118)])
def test_places_fill_the_workspace_without_overlaps(width: int, height: int) -> None:
    for name, live, way in itertools.product(NAMES, (False, True), ("beside", "over")):
        shown = companions(name, room(width, height + 2), live=live)
        found = places(shown, Size(width, height), "beside" if way == "beside" else "over")
        assert set(found) == set(shown)
        assert sum(region.area for region in found.values()) == width * height
        assert not any(one.overlaps(other) for one, other in itertools.combinations(found.values(), 2))
        assert all(Region(0, 0, width, height).contains_region(region) for region in found.values())


def test_four_panes_share_the_screen_by_need() -> None:
    found = places(companions("train", 4, live=False), Size(200, 48), "beside")
    assert found["config"].height >= 28
    assert found["train"].height >= 28
    assert found["train"].width > found["data"].width >= 80
