from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu_checks.ballast import piece
from bench.gpu_checks.models import ONE, tiny
from bench.gpu_checks.profiles import (
    CLASSES,
    RTX_4090,
    Rates,
    attention_kernels,
    by_class,
    classify,
    memory_rate,
    scaled,
)
from bench.gpu_checks.report import report, settled
from bench.gpu_checks.subjects import SUBJECTS, Found, Subject, chosen, not_run
from tests.cases import cases, tables

TABLES = tables(__file__)

GIB = 1 << 30


# Checks and their order.


@cases("arguments", [["--only", "22"], ["--only", "six"], ["--memory", "much"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(arguments)
    assert arguments[1] in capsys.readouterr().err


# Processes.


def fake(scratch: Path, *, kind: str = "cuda") -> gpu.Checks:
    return gpu.Checks(scratch, {"kind": kind}, tiny=False, module="tests.bench.fake_checks")


def made(checks: gpu.Checks, subjects: list[Subject], seconds: float = 1000.0) -> dict[int, Found]:
    return {subject.number: found for subject, found in checks.make(subjects, time.monotonic() + seconds)}


def test_checks_share_a_process_until_one_breaks_it(tmp_path: Path) -> None:
    found = made(fake(tmp_path), chosen([1, 2, 3, 4, 6, 7, 8]))
    pids = {number: outcome.figures.get("pid") for number, outcome in found.items()}
    assert pids[1] != pids[2]
    assert found[4].result == "fail"
    assert "ended with code 1" in found[4].detail
    assert "no more" in found[4].detail
    # 6 says that its process is not to be believed any more.
    assert pids[6] != pids[7] == pids[8]
    assert found[8].figures["asked"] == 2
    assert all(found[number].result == "pass" for number in (1, 2, 3, 6, 7, 8))


def test_a_check_that_hangs_is_ended_and_the_next_one_is_made(tmp_path: Path) -> None:
    hanging = replace(chosen([5])[0], deadline=0.5)
    found = made(fake(tmp_path), [hanging, *chosen([13, 16])])
    assert found[5].result == "fail"
    assert "was ended" in found[5].detail
    assert found[13].detail == "Its answer was none."
    assert found[16].result == "pass"


def test_what_is_not_begun_in_time_is_not_run(tmp_path: Path) -> None:
    found = made(fake(tmp_path), chosen([1, 2]), seconds=0.0)
    assert [outcome.result for outcome in found.values()] == ["not run", "not run"]


def test_what_needs_cuda_is_not_applicable_on_a_cpu(tmp_path: Path) -> None:
    found = made(fake(tmp_path, kind="cpu"), chosen([2, 9, 12, 14, 15, 20]), seconds=0.0)
    assert {outcome.result for outcome in found.values()} == {"not applicable"}
    assert all(outcome.detail.endswith(".") for outcome in found.values())


def test_ballast_comes_in_pieces_until_so_much_is_left() -> None:
    free, leave = 80 * GIB - 12345, 24 * GIB
    while size := piece(free, leave):
        free -= size
    assert leave <= free < leave + (2 << 20)
    assert piece(leave - 1, leave) == 0


# Profiles.


@cases(("kernel", "name"), TABLES["kernels_are_distinguished_by_their_names"])
def test_kernels_are_distinguished_by_their_names(kernel: str, name: str) -> None:
    assert classify(kernel) == name


def test_what_no_kernel_took_is_idle() -> None:
    spent = by_class([("some_gemm", 0.5), ("flash_bwd", 0.2), ("other", 0.1)], 1.0)
    assert tuple(spent) == CLASSES
    assert spent["GEMM"] == 0.5
    assert spent["idle"] == pytest.approx(0.2)
    assert by_class([("some_gemm", 2.0)], 1.0)["idle"] == 0.0
    kernels = [("void ns::flash_bwd<int>(Params)", 0.1), ("flash_fwd(Params)", 0.3), ("gemm", 1.0)]
    assert attention_kernels(kernels) == ["flash_fwd", "ns::flash_bwd"], "shortly, the longest first"


def test_a_profile_is_scaled_by_the_rates_of_the_cards() -> None:
    spent = dict.fromkeys(CLASSES, 0.1)
    there = scaled(spent, Rates(600e12, memory_rate("NVIDIA H100 80GB HBM3", 2.5e12)))
    assert there["GEMM"] == pytest.approx(0.4)
    assert there["attention"] == pytest.approx(0.1 * 3.35e12 / RTX_4090.memory)
    assert there["idle"] == 0.1
    assert scaled(spent, RTX_4090) == pytest.approx(spent)


# The report.


FOUND = {
    6: Found("pass", "Fast.", {"fastest": {"tokens_per_second": 3100.4}, "gain": 0.31, "bad": float("nan")}, 12.345),
    2: Found("not applicable", "A CPU has no context.", {}),
}


def test_the_report_is_json_in_the_order_of_the_numbers() -> None:
    written = report({"name": "RTX 4090", "driver": "580.1"}, {"torch": "2.13.0"}, "2026-01-31", FOUND, minutes=10.0)
    read = json.loads(json.dumps(written, allow_nan=False))
    assert read["device"] == "RTX 4090"
    assert read["driver"] == "580.1"
    assert read["minutes"] == 10.0
    assert [check["number"] for check in read["checks"]] == [2, 6]
    last = read["checks"][1]
    assert set(last) == {"number", "name", "settles", "result", "detail", "figures", "seconds"}
    assert last["figures"]["bad"] is None
    assert last["seconds"] == pytest.approx(12.345, abs=0.01)


def test_settled_figures_become_lines_of_the_table() -> None:
    lines = settled(FOUND, "RTX 4090", "2026-01-31")
    assert len(lines) == 2
    assert "| 3,100 | RTX 4090, 2026-01-31 | `python bench/gpu.py --only 6` |" in lines[0]
    assert "+31%" in lines[1]
    assert settled(not_run(SUBJECTS, "No time."), "RTX 4090", "2026-01-31") == []


# The checks themselves.


@pytest.mark.slow
def test_every_check_has_its_function() -> None:
    from bench.gpu_checks import compiling, experts, kernels, loading, peers, speed, state, updates

    modules = {
        module.__name__.rpartition(".")[2]: module
        for module in (compiling, experts, kernels, loading, peers, speed, state, updates)
    }
    for subject in SUBJECTS:
        assert callable(getattr(modules[subject.module], f"check_{subject.number}"))


@pytest.mark.slow
def test_paged_states_are_given_the_room_of_the_rest(tmp_path: Path) -> None:
    from bench.gpu_checks.models import make_model
    from bench.gpu_checks.state import room_beside_states
    from bench.gpu_checks.trainer import Stand

    stand = Stand(tmp_path, tmp_path / "models", True, {"kind": "cuda"}, {})
    make_model(tiny(ONE), stand.models)
    options = {"method.name": "full", "train.optimizer": "paged_adamw_8bit", "memory.gradient_checkpointing": "on"}
    leave, paged = room_beside_states(stand.config(ONE, stand.rows([48] * 4), options), [48] * 4)
    assert leave > 512 << 20
    assert paged > 0


@pytest.mark.slow
def test_gradients_are_compared_by_their_common_norm() -> None:
    import torch

    from bench.gpu_checks.kernels import difference

    one, other = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([3.0]), torch.tensor([4.5])]
    assert difference((1.0, one), (1.0, one)) == 0.0
    assert difference((1.0, other), (1.0, one)) == pytest.approx(0.1)
    assert difference((1.2, one), (1.0, one)) == pytest.approx(0.2)


def test_the_rate_of_a_peer_leaves_the_first_steps_out() -> None:
    from bench.gpu_checks.peers import rate

    assert rate(100, [0.0, 9.0, 10.0, 12.0, 14.0]) == 50.0


@cases(
    ("planned", "used", "same"),
    [("GPU-1a", "1a", True), ("GPU-1a", "GPU-1b", False), (None, None, True), ("GPU-1a", None, False)],
)
def test_cards_are_the_same_by_their_uuid(planned: str | None, used: str | None, same: bool) -> None:
    from bench.gpu_checks.loading import same_card

    assert same_card(planned, used) is same


# The whole script.


@pytest.mark.long
@pytest.mark.slow
def test_the_script_makes_its_checks_in_tiny_shapes(tmp_path: Path) -> None:
    out, root = tmp_path / "report.json", Path(__file__).resolve().parents[2]
    only = "1,2,3,4,5,6,7,8,9,12,13,14,15,16,17,18,20,21"
    command = [sys.executable, str(root / "bench" / "gpu.py"), "--tiny", "--only", only, "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(out.read_text())
    results = {check["number"]: check["result"] for check in read["checks"]}
    assert sorted(results) == [int(number) for number in only.split(",")]
    assert {number for number, result in results.items() if result == "not applicable"} == {2, 7, 9, 12, 14, 15, 20}
    assert {results[number] for number in (3, 13, 18)} == {"pass"}
    assert {results[number] for number in (1, 4, 5, 6, 8, 16, 17, 21)} == {"measured"}
    figures = {check["number"]: check["figures"] for check in read["checks"]}
    assert set(figures[8]["kept"]["seconds"]) == set(CLASSES)
    assert all(case["fits"] for case in figures[6]["cases"].values())
    assert "estimated" not in done.stdout  # figures of tiny shapes are no figures
