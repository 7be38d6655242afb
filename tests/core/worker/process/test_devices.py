"""A card that fails in the middle of a run, in words."""

from __future__ import annotations

import time

from core.hardware.snapshot import Device, Xid
from core.worker.process.devices import device_failure, shared_device
from tests.cases import cases
from tests.faults.injections import LOST_GPU


@cases(
    ("text", "words", "hint"),
    [
        (LOST_GPU, "stopped at an error", "overclocking"),
        ("CUDA error: no CUDA-capable device is detected", "cannot be reached any more", "Reboot"),
        ("CUDA error: uncorrectable ECC error encountered", "memory or processors have failed", "memory tested"),
        ("HIP error: something new", "reports an error", "sudo dmesg"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", "reports an error", "sudo dmesg"),
    ],
)
def test_errors_of_torch_get_advice(text: str, words: str, hint: str) -> None:
    found = device_failure(RuntimeError(text), 11, None)
    assert found is not None
    assert found.message.startswith("The GPU failed in step 12: ")
    assert words in found.message
    assert hint in found.hint


def test_the_drivers_own_error_is_reported_where_it_is_fresh() -> None:
    now = time.time()
    fresh, old = Xid(79, now - 5), Xid(31, now - 3600)
    found = device_failure(RuntimeError(LOST_GPU), 3, Device(index=0, kind="cuda", name="card", xid=[old, fresh]))
    assert found is not None
    assert "The driver reports Xid 79: the card has fallen off the bus" in found.message
    assert found.hint.startswith("Reboot")
    found = device_failure(RuntimeError(LOST_GPU), 3, Device(index=0, kind="cuda", name="card", xid=[old]))
    assert found is not None
    assert "Xid" not in found.message


@cases("error", [RuntimeError("shapes do not fit"), ValueError("CUDA error: no"), KeyError("x")])
def test_other_errors_are_not_blamed_on_the_card(error: Exception) -> None:
    assert device_failure(error, 1, None) is None


def test_an_index_that_the_queue_makes_on_the_same_device_is_reported() -> None:
    assert shared_device(["the index of tickets"]).message == (
        "The index of tickets is on the same device: both get slower, and their memory adds up."
    )
