"""A card that gets hot, hangs, is lost and comes back, as the sampler sees it."""

from __future__ import annotations

import os

from tests.core.hardware.conftest import Ask, Scene


def test_heat_moves_the_temperature_and_not_its_limits(scene: Scene) -> None:
    first = scene.read()[0]
    assert (first["temperature_c"], first["temperature_limit_c"]) == (71.0, 87.0)
    # The margin is rounded for itself: the sum is a degree higher now, and the limit stays.
    second = scene.read(temperature=80, margin=8, memory_temperature=96, power=449900)[0]
    assert (second["temperature_c"], second["temperature_margin_c"]) == (80.0, 8.0)
    assert (second["temperature_limit_c"], second["temperature_slowdown_c"]) == (87.0, 89.0)
    assert (second["memory_temperature_c"], second["power_w"]) == (96.0, 449.9)
    beyond = scene.read(temperature=90, margin=-3)[0]
    assert (beyond["temperature_margin_c"], beyond["temperature_limit_c"]) == (-3.0, 87.0)
    assert scene.read(memory_temperature=0)[0]["memory_temperature_c"] is None


def test_processes_have_owners_and_traffic_is_read(scene: Scene) -> None:
    device = scene.read(process=f"{os.getpid()}:5000000000")[0]
    (process,) = device["processes"]
    assert (process["pid"], process["memory"]) == (os.getpid(), 5_000_000_000)
    assert process["name"]
    assert process["owner"]
    assert (device["pcie_tx"], device["pcie_rx"]) == (100_000.0, 2_500_000_000.0)
    gone = scene.read(process="4194300:7")[0]["processes"]
    assert gone == [{"pid": 4194300, "memory": 7, "name": "", "owner": ""}]


def test_a_driver_that_hangs_leaves_old_values_with_their_age(scene: Scene) -> None:
    assert scene.read()[0]["age_s"] is None
    held = scene.read_until(lambda devices: devices[0]["age_s"] is not None, hang=1, temperature=99)[0]
    assert held["temperature_c"] == 71.0
    older = scene.read_until(lambda devices: devices[0]["age_s"] > held["age_s"], hang=1)[0]
    assert older["temperature_c"] == 71.0
    # Meanwhile the machine is read.
    assert scene.has_host
    back = scene.read_until(lambda devices: devices[0]["age_s"] is None, temperature=75)[0]
    assert back["temperature_c"] == 75.0


def test_a_lost_card_keeps_its_name_and_its_error_and_comes_back(scene: Scene) -> None:
    uuid = scene.read()[0]["uuid"]
    lost, other = scene.read(lost=1, xid="1:79")
    assert "fallen off the bus" in lost["problem"]
    assert (lost["uuid"], lost["name"]) == (uuid, "NVIDIA GeForce RTX 4090")
    assert lost["temperature_c"] is None
    assert [item["code"] for item in lost["xid"]] == [79]
    assert other["problem"] == ""
    back = scene.read(temperature=50)[0]
    assert (back["problem"], back["temperature_c"]) == ("", 50.0)


def test_a_driver_loaded_again_is_read_again(scene: Scene) -> None:
    before = scene.read(xid="1:31")
    assert [item["code"] for item in before[0]["xid"]] == [31]
    away = scene.read_until(lambda devices: "not loaded" in devices[0]["problem"], driver=9)
    assert [device["name"] for device in away] == [device["name"] for device in before]
    assert away[0]["uuid"] == before[0]["uuid"]
    # Opened again, the card is another one to the library, and what happened before is not forgotten.
    back = scene.read_until(lambda devices: not devices[0]["problem"], xid="2:13", temperature=60)
    again = scene.read(xid="2:13", temperature=60)
    assert back[0]["temperature_c"] == 60.0
    assert [item["code"] for item in again[0]["xid"]] == [31, 13]
    mismatched = scene.read_until(lambda devices: "different versions" in devices[0]["problem"], driver=18)
    assert mismatched[0]["kind"] == "cuda"


def test_an_error_is_read_once_and_the_newest_are_kept(scene: Scene) -> None:
    for number in range(1, 12):
        scene.read(xid=f"{number}:{100 + number}")
    device = scene.read(xid="11:111")[0]
    assert [item["code"] for item in device["xid"]] == [104, 105, 106, 107, 108, 109, 110, 111]


def test_one_card_can_be_read_alone_and_the_cpu_without_any(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.sampler import Sampler\nsampler = Sampler(1000.0)\n"
        "sampler.watch('GPU-00000011-1111-2222-3333-444455556666')\n"
        "one = [device.index for device in sampler.refresh(20.0)]\nsampler.watch('cpu')\n"
        "print(json.dumps([one, [device.kind for device in sampler.refresh(20.0)]]))"
    )
    assert ask_driver(program) == [[1], ["cpu"]]


def test_a_run_on_the_cpu_does_not_wait_for_a_driver_that_hangs(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.sampler import Sampler\nsampler = Sampler(1000.0)\nsampler.watch('cpu')\n"
        "print(json.dumps([device.kind for device in sampler.refresh(20.0)]))"
    )
    assert ask_driver(program, "hang") == ["cpu"]
