from __future__ import annotations

from pathlib import Path

from core.hardware.wsl import is_wsl
from tests.cases import cases


@cases(
    ("release", "expected"),
    [
        ("6.6.87.2-microsoft-standard-WSL2\n", True),
        ("4.4.0-19041-Microsoft\n", True),
        ("6.8.0-45-generic\n", False),
    ],
)
def test_the_kernel_tells_it(tmp_path: Path, release: str, expected: bool) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    assert is_wsl(tmp_path) is False
    (tmp_path / "proc/sys/kernel/osrelease").write_text(release)
    assert is_wsl(tmp_path) is expected
