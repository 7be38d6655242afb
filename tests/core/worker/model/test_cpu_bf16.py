"""The measured speed of bf16 on this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.hardware.cpu import is_bf16_measured
from core.worker.model import cpu_bf16
from core.worker.model.model import choose_dtype


@pytest.mark.parametrize(("ratio", "dtype"), [(2.0, torch.bfloat16), (0.2, torch.float32)])
def test_auto_takes_what_was_measured_once(
    ratio: float, dtype: torch.dtype, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_bf16, "speed_ratio", lambda: ratio)
    assert choose_dtype("auto", torch.device("cpu")) == dtype
    assert is_bf16_measured()
    monkeypatch.setattr(cpu_bf16, "speed_ratio", lambda: pytest.fail("measured again"))
    assert choose_dtype("auto", torch.device("cpu")) == dtype


def test_the_random_state_is_left_as_it_is() -> None:
    before = torch.get_rng_state()
    assert cpu_bf16.speed_ratio() > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="flags of a processor are read on Linux")
def test_emulated_bf16_is_not_taken_whatever_the_flags_say(tmp_path: Path) -> None:
    code = "from core.worker.model.cpu_bf16 import prefers_bf16; print(prefers_bf16())"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **limits, "LOCALTUNE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False"
