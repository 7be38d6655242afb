"""Host memory of optimizer states."""

from __future__ import annotations

from core.memory.sizes import optimizer_bytes, states_host_bytes
from tests.cases import cases

TENSORS = [(4096, 4096, 3), (1, 4096, 2), (128, 4096, 1)]
ALL = sum(optimizer_bytes("paged_adamw_8bit", rows * columns, columns) * count for rows, columns, count in TENSORS)


@cases(
    ("kind", "expected"),
    [
        ("paged_adamw_8bit", ALL),
        ("adamw", 4 * 4096**2 + 2),
        ("adamw_8bit", 4096**2 + 4 * 4096**2 // 256),
        ("lion_8bit", 4096**2 + 4 * 4096**2 // 256),
    ],
)
def test_paged_states_count_whole_and_others_by_the_largest(kind: str, expected: int) -> None:
    assert states_host_bytes(kind, TENSORS) == expected


def test_nothing_that_is_trained_takes_nothing() -> None:
    assert states_host_bytes("adamw", []) == 0
    assert states_host_bytes("adamw", [(4096, 4096, 0)]) == 0
