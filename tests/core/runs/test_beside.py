from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.runs.control import devices as beside
from core.runs.control.devices import model_bytes, refuse_crowding, runs_on_card, runs_on_cpu
from tests.cases import cases

GB = 10**9


@cases(
    ("needed", "free", "runs", "words"),
    [
        (16 * GB, 3 * GB, ["the-run"], "Run the-run trains on the same device, where 3.0 GB are"),
        (2 * GB, 3 * GB, ["x"], ""),
        (16 * GB, 3 * GB, [], ""),
    ],
)
def test_a_model_that_does_not_fit_beside_a_run_is_told(needed: int, free: int, runs: list[str], words: str) -> None:
    if not words:
        refuse_crowding(needed, free, lambda: runs)
        return
    with pytest.raises(UserError, match=words):
        refuse_crowding(needed, free, lambda: runs)


def test_a_quantized_model_is_smaller() -> None:
    assert model_bytes(16 * GB, "lora") == 16 * GB
    assert model_bytes(16 * GB, "qlora") < 6 * GB


@cases(("processes", "wsl", "expected"), [({11}, False, ["a"]), ({99}, False, []), (set(), True, ["a", "b"])])
def test_runs_are_found_by_their_processes(
    monkeypatch: pytest.MonkeyPatch, processes: set[int], wsl: bool, expected: list[str]
) -> None:
    def run(name: str, pid: int | None, device: str = "auto", *, over: bool = False, host: str = "here") -> Any:
        state = SimpleNamespace(is_over=over, pid=pid, host=host)
        config = SimpleNamespace(hardware=SimpleNamespace(device=device))
        return SimpleNamespace(id=name, state=lambda: state, config=lambda: config)

    runs = [run("a", 11), run("b", 12), run("c", 13, "cpu"), run("d", 11, over=True), run("e", 11, host="there")]
    monkeypatch.setattr(beside, "list_runs", lambda: runs)
    monkeypatch.setattr(beside, "hostname", lambda: "here")
    monkeypatch.setattr(beside, "is_wsl", lambda: wsl)
    monkeypatch.setattr(beside, "_processes", lambda _: processes)
    assert runs_on_card("GPU-1") == expected
    # A run whose device is chosen by itself may be on either.
    assert runs_on_cpu() == ["a", "b", "c"]
