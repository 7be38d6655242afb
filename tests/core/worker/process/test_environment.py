import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import cases
from tests.core.worker.process.after_torch import told_after_torch


def run_python(code: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **variables}
    )
    return result.stdout


def test_private_variables_are_set_whatever_the_environment_has() -> None:
    code = (
        "import json, os; from core.worker.process import environment; environment.prepare(); "
        "print(json.dumps(dict(os.environ)))"
    )
    given = {"HF_HUB_OFFLINE": "0", "WANDB_MODE": "online", "TOKENIZERS_PARALLELISM": "true"}
    found = json.loads(run_python(code, **given, CUDA_DEVICE_ORDER="FASTEST_FIRST"))
    assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert found["WANDB_MODE"] == "offline"
    assert (found["TOKENIZERS_PARALLELISM"], found["CUDA_DEVICE_ORDER"]) == ("true", "FASTEST_FIRST")
    assert "expandable_segments:True" in found["PYTORCH_ALLOC_CONF"]


_ALLOCATOR = """
import json, os, torch
from core.hardware.drivers import describe_allocator
from core.worker.process import environment
environment.is_wsl = lambda: wsl
environment.prepare()
# As at the first CUDA call: the allocator's own reading of the environment (torch tells it from 2.11 on), and what is
# said of it.
read = getattr(torch._C, "_accelerator_getAllocatorSettings", lambda: None)
print(json.dumps([read(), os.environ.get("CUDA_DEVICE_ORDER"), describe_allocator(os.environ, wsl=wsl)]))
"""
NEW, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
#: Variables set by the user, WSL or not, and the expected settings and description.
ALLOCATORS: tuple[tuple[dict[str, str], bool, str, str], ...] = (
    ({}, False, "expandable_segments:True", "expandable segments"),
    ({}, True, "expandable_segments:False", "expandable segments are off under WSL 2"),
    ({NEW: "expandable_segments:False"}, False, "expandable_segments:False", f"({NEW}=expandable_segments:False)"),
    ({OLD: "expandable_segments:False"}, False, "expandable_segments:False", f"({OLD}=expandable_segments:False)"),
    ({NEW: "max_split_size_mb:128"}, False, "max_split_size_mb:128", "as you set it"),
    ({OLD: "max_split_size_mb:128"}, True, "max_split_size_mb:128", "as you set it"),
    ({NEW: "expandable_segments:True"}, True, "expandable_segments:True", "as you set it"),
    ({NEW: ""}, False, "", "as you set it"),
)


@pytest.fixture(scope="module")
def allocators() -> list[tuple[str | None, str, str]]:
    """Settings read by the allocator, order of cards, and description."""
    clean = {name: value for name, value in os.environ.items() if name not in (NEW, OLD, "CUDA_DEVICE_ORDER")}
    return told_after_torch(_ALLOCATOR, [(clean | variables, {"wsl": wsl}) for variables, wsl, _, _ in ALLOCATORS])


@pytest.mark.long
@cases("number", range(len(ALLOCATORS)))
def test_the_allocator_is_as_the_user_said(number: int, allocators: list[tuple[str | None, str, str]]) -> None:
    _, _, settings, words = ALLOCATORS[number]
    read, order, described = allocators[number]
    assert read in (settings, None)
    assert words in described
    assert order == "PCI_BUS_ID"


@pytest.mark.long
def test_no_native_code_is_fetched_for_bitsandbytes(tmp_path: Path) -> None:
    """A package called kernels, as the hub's is, must not even be asked."""
    (tmp_path / "kernels.py").write_text(
        "def __getattr__(name):\n"
        f"    open({str(tmp_path / 'asked')!r}, 'a').write(name + '\\n')\n"
        "    raise AttributeError(name)\n"
    )
    run_python(
        "from core.worker.process import environment; environment.prepare(); import bitsandbytes, transformers",
        PYTHONPATH=str(tmp_path),
        OMP_NUM_THREADS="1",
    )
    assert not (tmp_path / "asked").exists()
