from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.hardware import amd
from core.hardware.power import changed_limits, may_set_power, restore, set_power_limit
from tests.core.hardware.amd_tree import CARD, make_card
from tests.core.hardware.conftest import Ask

UUID = "GPU-00000010-1111-2222-3333-444455556666"
SET = (
    f"uuid = '{UUID}'\n"
    """
import json
from core.errors import UserError
from core.hardware.nvml import Nvml
from core.hardware.power import changed_limits, restore, set_power_limit
said = []
def limit():
    return Nvml().devices()[0].power_limit_w
def attempt(watts):
    try:
        said.append(set_power_limit(uuid, watts))
    except UserError as error:
        said.append([error.message, error.hint])
"""
)


@pytest.fixture(autouse=True)
def _home(private_home: Path) -> None:
    """Records of limits are in the home."""


def test_a_limit_is_set_and_what_was_there_first_is_put_back(ask_driver: Ask) -> None:
    program = (
        "attempt(300)\nattempt(250)\nsaid += [limit(), changed_limits(), restore(uuid), limit()]\n"
        "said += [restore(uuid), changed_limits()]\nprint(json.dumps(said))"
    )
    assert ask_driver(SET + program) == [450.0, 300.0, 250.0, {UUID: 450.0}, 450.0, 450.0, None, {}]


def test_a_user_without_permission_gets_the_command(ask_driver: Ask, tmp_path: Path) -> None:
    scenario = tmp_path / "driver.txt"
    scenario.write_text("denied=1\n")
    program = "attempt(300.4)\nprint(json.dumps([*said, limit(), changed_limits()]))"
    (message, hint), limit, kept = ask_driver(SET + program, "", scenario)
    assert message == "This user may not set the power limit of GPU 0: root alone may."
    assert hint == "Run: sudo nvidia-smi -i 0 -pl 300"
    assert (limit, kept) == (450.0, {})


def test_a_limit_that_a_killed_process_left_is_put_back_by_the_next(ask_driver: Ask) -> None:
    ask_driver(SET + "attempt(300)\nprint(json.dumps(said))")
    assert changed_limits() == {UUID: 450.0}
    assert ask_driver(SET + "attempt(280)\nprint(json.dumps([*said, restore(uuid), limit()]))") == [450.0, 450.0, 450.0]
    assert changed_limits() == {}


def test_what_cannot_be_set_is_reported(ask_driver: Ask) -> None:
    program = (
        "attempt(100)\nattempt(500)\nuuid = 'GPU-00000011'\nattempt(300)\nuuid = 'GPU-nobody'\nattempt(300)\n"
        "print(json.dumps([*said, changed_limits()]))"
    )
    low, high, none, nobody, kept = ask_driver(SET + program)
    assert low[0] == "The power limit of GPU 0 can be 150 to 480 W, and not 100 W."
    assert "and not 500 W" in high[0]
    assert none[0] == "GPU 1 has no power limit that can be set."
    assert nobody[0] == "There is no card GPU-nobody whose power limit could be set."
    assert kept == {}


def test_a_driver_that_hangs_is_not_waited_for(ask_driver: Ask) -> None:
    program = (
        "from core.hardware import power\npower._DRIVER_SECONDS = 0.2\n"
        "power._NvidiaLimit.read = lambda self: __import__('threading').Event().wait()\n"
        "attempt(300)\nprint(json.dumps(said))"
    )
    ((message, _),) = ask_driver(SET + program)
    assert "has not answered for 0.2 s" in message


def test_an_amd_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_card(tmp_path, CARD)
    monkeypatch.setattr(amd.find_cards, "__defaults__", (tmp_path,))
    cap = device / "hwmon/hwmon4/power1_cap"
    assert set_power_limit("AMD-d6c8e5a2f0914b37", 310.5) == 339.0
    assert cap.read_text() == "310500000"
    assert restore("AMD-d6c8e5a2f0914b37") == 339.0
    assert cap.read_text() == "339000000"

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(UserError, match="root alone may") as caught:
        set_power_limit("AMD-d6c8e5a2f0914b37", 320)
    file = tmp_path / "sys/class/drm/card0/device/hwmon/hwmon4/power1_cap"
    assert caught.value.hint == f"Run: echo 320000000 | sudo tee {file}"
    assert changed_limits() == {}


def test_a_damaged_record_is_none(private_home: Path) -> None:
    (private_home / "power").mkdir(parents=True)
    for number, text in enumerate(("{", "[]", '{"watts": -1}', '{"watts": "450"}', '{"watts": 1e9}')):
        (private_home / f"power/{number}.json").write_text(text)
    assert changed_limits() == {}
    assert restore("0") is None


def test_the_right_to_set_the_power_limit_is_read_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    for user, capabilities, allowed in (
        (0, "000001ffffffffff", True),
        (0, "00000000a80425fb", False),  # root of a container
        (1000, "000001ffffffffff", False),
        (1000, "0000000000000000", False),
    ):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        status.write_text(f"Name:\tpython\nCapEff:\t{capabilities}\n", encoding="ascii")
        assert may_set_power(status) is allowed
